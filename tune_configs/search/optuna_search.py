"""Optuna: the way to tune SAC-HPO for a new task, over the five settings that the paper chooses by task.

pip install 'rllib-hpo[search]'
python tune_configs/search/optuna_search.py --task Pendulum-v1 --steps 20000 --num-samples 40 --out runs/optuna
"""

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from rllib_hpo import SACHPO
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.sweeps import search

SPACE = {
    "alpha": tune.loguniform(
        0.01, 1.0
    ),  # in units of the task's rewards: widen it where they are not about 1
    "momentum_std_train": tune.loguniform(0.03, 1.0),
    "momentum_std_explore": tune.loguniform(0.1, 3.0),
    "step_size": tune.loguniform(0.02, 0.5),
    "leapfrog_steps": tune.randint(1, 5),
}


def main() -> None:
    """Searches, and prints the best settings."""
    options = search.options(__doc__, SPACE, steps=100_000, num_samples=40)
    with ray_session():
        tuner = tune.Tuner(
            SACHPO,
            param_space=search.configure(options).training(**options.space),
            tune_config=tune.TuneConfig(
                metric=search.METRIC,
                mode="max",
                search_alg=OptunaSearch(),
                num_samples=options.num_samples,
            ),
            run_config=search.run_config(options),
        )
        search.report(tuner.fit(), options)


if __name__ == "__main__":
    main()
