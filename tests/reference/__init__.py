"""Reference implementations of the maths, in float64, written from the equations of the papers.

Nothing here imports the package under test, and nothing here is fast: each function is the shortest
transcription of its equation, with autograd wherever a derivative is needed.
Equation numbers are those of Xu & Fekri, "Improving Actor-Critic Reinforcement Learning via Hamiltonian
Monte Carlo Method" (arXiv 2103.12020), unless another paper is named.
"""
