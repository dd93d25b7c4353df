"""Define the training loops that `benchmarks.train_speed` compares, behind one interface.

All train SAC (or SAC-HPO, or TD3) on Hopper-v4 with one environment, batch 256, networks of 256-256 ReLU units, one
update per environment step after `warmup_steps` random steps, on the CPU. A contestant's constructor
imports its library, because each runs in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

ENV_ID = "Hopper-v4"
NEVER = 1_000_000_000
"""More steps than any benchmark takes, to switch off evaluations, checkpoints and logs."""


class Counts(NamedTuple):
    """Lifetime counters of a training loop."""

    env_steps: int
    updates: int


class Contestant(Protocol):
    """A training loop that can run a given number of further steps."""

    def run(self, steps: int) -> None:
        """Train for `steps` environment steps (the number given to its factory, or a multiple)."""

    def counts(self) -> Counts:
        """Return the environment steps and updates so far."""


class HandWritten:
    """Run the loop in `benchmarks.handwritten_sac`."""

    def __init__(self, warmup_steps: int) -> None:
        from benchmarks.handwritten_sac import HandwrittenSAC

        self.sac = HandwrittenSAC(ENV_ID, warmup_steps=warmup_steps)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.sac.step()

    def counts(self) -> Counts:
        return Counts(self.sac.env_steps, self.sac.updates)


class StableBaselines3:
    """Run stable-baselines3's SAC with its defaults, except for the fixed temperature that all contestants share."""

    def __init__(self, warmup_steps: int) -> None:
        from stable_baselines3 import SAC

        self.sac = SAC("MlpPolicy", ENV_ID, ent_coef=0.2, learning_starts=warmup_steps, seed=0, device="cpu")

    def run(self, steps: int) -> None:
        self.sac.learn(steps, log_interval=NEVER, reset_num_timesteps=self.sac.num_timesteps == 0)

    def counts(self) -> Counts:
        return Counts(self.sac.num_timesteps, self.sac._n_updates)


class SBX:
    """Run SBX's SAC (Stable-Baselines3 in JAX), whose whole update XLA compiles, on one core."""

    def __init__(self, warmup_steps: int) -> None:
        # XLA makes as many threads as it may use cores, when it is imported.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["JAX_PLATFORMS"] = "cpu"
        from sbx import SAC

        self.sac = SAC("MlpPolicy", ENV_ID, ent_coef=0.2, learning_starts=warmup_steps, seed=0)

    def run(self, steps: int) -> None:
        self.sac.learn(steps, log_interval=NEVER, reset_num_timesteps=self.sac.num_timesteps == 0)

    def counts(self) -> Counts:
        return Counts(self.sac.num_timesteps, self.sac._n_updates)


class StableBaselines3TD3:
    """Run stable-baselines3's TD3 with the networks and learning rate of TD3's authors, as this package does."""

    def __init__(self, warmup_steps: int) -> None:
        import numpy as np
        from stable_baselines3 import TD3
        from stable_baselines3.common.noise import NormalActionNoise

        self.td3 = TD3(
            "MlpPolicy",
            ENV_ID,
            learning_rate=3e-4,
            action_noise=NormalActionNoise(np.zeros(3), 0.1 * np.ones(3)),
            policy_kwargs={"net_arch": [256, 256]},
            learning_starts=warmup_steps,
            seed=0,
            device="cpu",
        )

    def run(self, steps: int) -> None:
        self.td3.learn(steps, log_interval=NEVER, reset_num_timesteps=self.td3.num_timesteps == 0)

    def counts(self) -> Counts:
        return Counts(self.td3.num_timesteps, self.td3._n_updates)


class RLlibHPO:
    """Run this package's algorithms, through RLlib's `Algorithm.train()`."""

    def __init__(
        self, algorithm: str, warmup_steps: int, steps: int, *, new_stack: bool = True, **settings: Any
    ) -> None:
        from rllib_hpo.rllib.algorithms import CONFIGS

        config, settings = CONFIGS[algorithm], {"compile_update": False, **settings}
        self.algo = (
            config.for_task(ENV_ID)
            .api_stack(new_stack, new_stack)
            .training(
                warmup_steps=warmup_steps,
                steps_per_iteration=steps,
                evaluation_every=NEVER,
                checkpoint_every=NEVER,
                **settings,
            )
            .debugging(seed=0)
            .build_algo()
        )

    def run(self, steps: int) -> None:
        end = self.counts().env_steps + steps
        while self.counts().env_steps < end:
            self.algo.train()

    def counts(self) -> Counts:
        return Counts(self.algo.env_steps, self.algo.local_learner.trainer.num_updates)


class RLlibSAC:
    """Run RLlib's own SAC on its new API stack, in one process, with one update of batch 256 per step.

    With "fcnet 256-256, ReLU" its policy equals that of the others, but its critics do not: state and action each pass
    a 256-256 encoder, followed by three joint layers by default, or none if `small`. No option makes them plain 256-256
    networks.
    """

    def __init__(self, warmup_steps: int, steps: int, *, small: bool = False) -> None:
        from ray.rllib.algorithms.sac import SACConfig
        from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

        start_ray()
        fusion: dict[str, Any] = {"fusionnet_hiddens": []} if small else {}
        model = DefaultModelConfig(
            fcnet_hiddens=[256, 256], fcnet_activation="relu", head_fcnet_hiddens=[], **fusion
        )
        config = (
            SACConfig()
            .environment(ENV_ID)
            .env_runners(num_env_runners=0, rollout_fragment_length=1)
            .learners(num_learners=0)
            .rl_module(model_config=model)
            .training(
                train_batch_size_per_learner=256,
                training_intensity=256,  # rows replayed per sampled step: one batch of 256 per step
                actor_lr=3e-4,
                critic_lr=3e-4,
                alpha_lr=3e-4,
                num_steps_sampled_before_learning_starts=warmup_steps,
            )
            .reporting(min_sample_timesteps_per_iteration=steps, min_time_s_per_iteration=0)
            .debugging(seed=0, log_level="ERROR")
        )
        self.algo = config.build_algo()
        self.batches = 0
        self._count_updates()

    def run(self, steps: int) -> None:
        end = self.counts().env_steps + steps
        while self.counts().env_steps < end:
            self.algo.train()

    def counts(self) -> Counts:
        steps = self.algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)
        return Counts(int(steps), self.batches)

    def _count_updates(self) -> None:
        """Count calls of the learner's update, which RLlib's metrics do not report reliably."""
        update = self.algo.learner_group.update

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.batches += 1
            return update(*args, **kwargs)

        self.algo.learner_group.update = counted


def start_ray() -> None:
    """Start a Ray with one CPU for this process alone; everything measured runs in local mode."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )


CONTESTANTS: dict[str, Callable[[int, int], Contestant]] = {
    "hand-written": lambda warmup, steps: HandWritten(warmup),
    "sac": lambda warmup, steps: RLlibHPO("sac", warmup, steps),
    "sac-compiled": lambda warmup, steps: RLlibHPO("sac", warmup, steps, compile_update=True),
    "sac-old-stack": lambda warmup, steps: RLlibHPO("sac", warmup, steps, new_stack=False),
    "sac-hpo-2": lambda warmup, steps: RLlibHPO("sac-hpo", warmup, steps, leapfrog_steps=2),
    "sac-hpo-3": lambda warmup, steps: RLlibHPO("sac-hpo", warmup, steps, leapfrog_steps=3),
    "sac-hpo-3-compiled": lambda warmup, steps: RLlibHPO(
        "sac-hpo", warmup, steps, leapfrog_steps=3, compile_update=True
    ),
    "td3": lambda warmup, steps: RLlibHPO("td3", warmup, steps),
    "sbx": lambda warmup, steps: SBX(warmup),
    "stable-baselines3": lambda warmup, steps: StableBaselines3(warmup),
    "stable-baselines3-td3": lambda warmup, steps: StableBaselines3TD3(warmup),
    "rllib-sac": RLlibSAC,
    "rllib-sac-small": lambda warmup, steps: RLlibSAC(warmup, steps, small=True),
}
"""Factories by name, called with (random warm-up steps, environment steps of a slice)."""

TITLES = {
    "hand-written": "hand-written SAC loop",
    "sac": "**rllib_hpo SAC**",
    "sac-compiled": "**rllib_hpo SAC, compiled**",
    "sac-old-stack": "rllib_hpo SAC on RLlib's old API stack",
    "sac-hpo-2": "**rllib_hpo SAC-HPO, K = 2**",
    "sac-hpo-3": "**rllib_hpo SAC-HPO, K = 3**",
    "sac-hpo-3-compiled": "**rllib_hpo SAC-HPO, K = 3, compiled**",
    "td3": "**rllib_hpo TD3**",
    "sbx": "SBX (Stable-Baselines3 in JAX) SAC",
    "stable-baselines3": "stable-baselines3 SAC",
    "stable-baselines3-td3": "stable-baselines3 TD3",
    "rllib-sac": "RLlib's own SAC, its default shape of critics",
    "rllib-sac-small": "RLlib's own SAC, the smallest critics it offers",
}
"""Names in the table."""
