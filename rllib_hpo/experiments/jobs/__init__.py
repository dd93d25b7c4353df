"""Sweeps as jobs of a remote Ray cluster, and the diagnosis of an installation or a cluster."""

from rllib_hpo.moved import moved_names

__getattr__ = moved_names(__name__)
