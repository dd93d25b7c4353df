"""ASHA: many settings of SAC-HPO begin, and at each rung only the better third goes on.

python tune_configs/search/asha.py --task hopper --steps 90000 --num-samples 18 --out runs/asha
"""

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from rllib_hpo import SACHPO
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.sweeps import search

SPACE = {
    "momentum_std_explore": tune.loguniform(0.1, 3.0),
    "step_size": tune.loguniform(0.02, 0.5),
}


def main() -> None:
    """Searches, and prints the best settings."""
    options = search.options(__doc__, SPACE, steps=90_000, num_samples=18)
    config = search.configure(options).training(**options.space)
    scheduler = ASHAScheduler(
        time_attr=search.TIME,
        max_t=options.steps,
        grace_period=max(1, options.steps // 9),  # rungs at a ninth and a third of the steps
        reduction_factor=3,
    )
    with ray_session():
        tuner = tune.Tuner(
            SACHPO,
            param_space=config,
            tune_config=tune.TuneConfig(
                metric=search.METRIC, mode="max", scheduler=scheduler, num_samples=options.num_samples
            ),
            run_config=search.run_config(options),
        )
        search.report(tuner.fit(), options)


if __name__ == "__main__":
    main()
