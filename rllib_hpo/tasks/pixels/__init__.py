"""Make tasks whose observations are images: of any environment that renders, and of the DeepMind Control Suite."""

from __future__ import annotations

from rllib_hpo.tasks.pixels.observation import PixelObservation

__all__ = ["PixelObservation"]
