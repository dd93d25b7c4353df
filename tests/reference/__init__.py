"""Implement the maths as reference, in float64, from the equations of the papers.

These modules do not import the package under test, and are slow: each function is the shortest transcription of its
equation, with autograd for every derivative. Equation numbers are those of Xu & Fekri, "Improving Actor-Critic
Reinforcement Learning via Hamiltonian Monte Carlo Method" (arXiv 2103.12020), unless another paper is named.
"""
