"""Divide the algorithms by what they learn from, for tests that every algorithm of a kind inherits."""

from __future__ import annotations

from rllib_hpo.algorithms.registry import BUILT_IN, find_settings, make_method

OF_IMAGES = tuple(name for name in BUILT_IN if make_method(find_settings(name)()).takes_images)
"""Algorithms that learn from images; their own tests have tasks with images."""

OF_VECTORS = tuple(name for name in BUILT_IN if name not in OF_IMAGES)
"""Algorithms that learn from vectors."""
