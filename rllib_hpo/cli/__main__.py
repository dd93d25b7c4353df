"""Run `python -m rllib_hpo.cli` as `rllib-hpo`."""

from rllib_hpo.cli import main

main()
