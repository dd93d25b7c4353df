"""RLlib adapters, the only place that subclasses RLlib: thin, they convert, call and log."""

from rllib_hpo.tasks.pixels.rendering import choose_renderer_for_rllib

choose_renderer_for_rllib()
