"""PBT: after each evaluation the worst trials go on from checkpoints of the best, with settings nearby.

python tune_configs/search/pbt.py --task hopper --steps 100000 --num-samples 4 --out runs/pbt
"""

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from rllib_hpo import SACHPO
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.sweeps import search

SPACE = {
    "momentum_std_explore": tune.loguniform(0.1, 3.0),
    "step_size": tune.loguniform(0.02, 0.5),
}


def main() -> None:
    """Trains the population, and prints the settings that its best trials ended with."""
    options = search.options(__doc__, SPACE, steps=100_000, num_samples=4)
    config = search.configure(options)
    scheduler = PopulationBasedTraining(
        time_attr=search.TIME,
        perturbation_interval=config.evaluation_every,  # whenever there is something new to judge by
        hyperparam_mutations=options.space,
        synch=True,  # trials are compared at equal steps, on machines with few cores too
    )
    with ray_session():
        tuner = tune.Tuner(
            SACHPO,
            param_space=config.training(
                **options.space
            ),  # where the trials begin; without it all would begin alike
            tune_config=tune.TuneConfig(
                metric=search.METRIC, mode="max", scheduler=scheduler, num_samples=options.num_samples
            ),
            run_config=search.run_config(options),
        )
        search.report(tuner.fit(), options)


if __name__ == "__main__":
    main()
