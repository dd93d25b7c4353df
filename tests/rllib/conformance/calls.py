"""List what a user of RLlib may do, and which results must be equal for all algorithms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.policy.policy import Policy

from tests.rllib.conformance.subjects import Subject

Stack = Literal["new", "old"]
BOTH: tuple[Stack, ...] = ("new", "old")


@dataclass(frozen=True)
class Refusal:
    """Error of a rejected call, and its reason."""

    match: str
    """Regular expression of the sentence."""
    reason: str
    """Reason for the page."""


@dataclass(frozen=True)
class Call:
    """One call.

    `run` returns facts as plain values, which must equal those of RLlib's SAC on the same stack.
    """

    group: str
    code: str
    """Source text as a user writes it."""
    run: Callable[[Subject], Any]
    stacks: tuple[Stack, ...] = BOTH
    """Stacks on which RLlib supports it."""
    refused: dict[Stack, Refusal] = field(default_factory=dict)
    may_be_more: bool = False
    """Whether facts that RLlib's SAC lacks are allowed."""


CALLS: list[Call] = []


def call(
    group: str,
    code: str,
    stacks: tuple[Stack, ...] = BOTH,
    *,
    may_be_more: bool = False,
    **refused: Refusal,
) -> Callable[[Any], Any]:
    """Add a function to the table."""

    def add(run: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
        CALLS.append(Call(group, code, run, stacks, refused, may_be_more))  # type: ignore[arg-type]
        return run

    return add


# --- configuration ---


def _changed(subject: Subject) -> Any:
    return subject.config().training(gamma=0.9).env_runners(num_envs_per_env_runner=2)


def _seen(config: Any) -> tuple[Any, ...]:
    return config.gamma, config.num_envs_per_env_runner, config.seed, config.env


@call("Configuration", "config.copy()")
def _copy(subject: Subject) -> Any:
    config = _changed(subject)
    copied = config.copy()
    copied.training(gamma=0.5)
    return _seen(copied), _seen(config), _seen(copy.deepcopy(config))


@call("Configuration", "Config().update_from_dict(config.to_dict())")
def _dict(subject: Subject) -> Any:
    config = _changed(subject)
    changed = {**config.to_dict(), "gamma": 0.8}
    return _seen(type(config)().update_from_dict(changed))


@call("Configuration", "Config.from_state(config.get_state())")
def _state(subject: Subject) -> Any:
    config = _changed(subject)
    return _seen(type(config).from_state(config.get_state()))


@call("Configuration", "pickle.loads(pickle.dumps(config))")
def _pickled(subject: Subject) -> Any:
    return _seen(cloudpickle.loads(cloudpickle.dumps(_changed(subject))))


@call("Configuration", 'config["gamma"], config.get("gamma"), "gamma" in config')
def _items(subject: Subject) -> Any:
    config = _changed(subject)
    return config["gamma"], config.get("gamma"), config.get("nothing", 3), "gamma" in config, "x" in config


@call("Configuration", "config.freeze()")
def _frozen(subject: Subject) -> Any:
    config = _changed(subject)
    config.freeze()
    try:
        config.gamma = 0.5
    except AttributeError:
        return config.gamma, config.copy(copy_frozen=False).training(gamma=0.5).gamma
    return "changed"


@call("Configuration", "Config.from_dict(config.to_dict())")
def _from_dict(subject: Subject) -> Any:
    config = _changed(subject)
    return _seen(type(config).from_dict(config.to_dict()))


@call("Configuration", "config.callbacks(on_train_result=function)")
def _functions(subject: Subject) -> Any:
    return bool(subject.config().callbacks(on_train_result=print).callbacks_on_train_result)


# --- building and running ---


@call("Building and running", "config.build_algo(), algorithm.train(), algorithm.stop()")
def _built(subject: Subject) -> Any:
    built = subject.built
    return isinstance(built, Algorithm), built.iteration, built.training_iteration, built.config.gamma


@call("Building and running", "AlgorithmClass(config=config), AlgorithmClass(config=config.to_dict())")
def _classes(subject: Subject) -> Any:
    config, cls = subject.config(), subject.config().algo_class
    return [subject.keep(cls(config=given)).config.seed for given in (config, config.to_dict())]


@call("Building and running", "algorithm.stop() twice")
def _stopped(subject: Subject) -> Any:
    built = subject.config().build_algo()
    return built.stop(), built.stop()


@call("Building and running", "algorithm.evaluate()")
def _evaluate(subject: Subject) -> Any:
    runners = subject.built.evaluate()["env_runners"]
    return isinstance(runners["episode_return_mean"], float), runners["episode_len_mean"]


@call("Building and running", "algorithm.env_runner_group.foreach_env_runner(function)")
def _foreach_runner(subject: Subject) -> Any:
    return subject.built.env_runner_group.foreach_env_runner(lambda runner: runner.worker_index)


@call("Building and running", "env_runner.env.unwrapped.envs[0].unwrapped", stacks=("new",))
def _envs(subject: Subject) -> Any:
    env = subject.built.env_runner.env
    return type(env.unwrapped.envs[0].unwrapped).__name__, env.num_envs, env.single_action_space.shape


@call("Building and running", "algorithm.learner_group.foreach_learner(function)", stacks=("new",))
def _foreach_learner(subject: Subject) -> Any:
    results = subject.built.learner_group.foreach_learner(lambda learner, **_: sorted(learner.module.keys()))
    return [result.get() for result in results]


@call("Building and running", "algorithm.metrics.peek(...)", stacks=("new",))
def _peek(subject: Subject) -> Any:
    return int(subject.built.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")))


_NO_EPISODE_OBJECTS = Refusal("does not return RLlib episodes", "Transitions are rows, not episode objects.")


@call(
    "Building and running",
    "env_runner.sample(num_timesteps=8)",
    stacks=("new",),
    new=_NO_EPISODE_OBJECTS,
)
def _sample_steps(subject: Subject) -> Any:
    return len(subject.built.env_runner.sample(num_timesteps=8))


@call(
    "Building and running",
    "env_runner.sample(num_episodes=1)",
    stacks=("new",),
    new=_NO_EPISODE_OBJECTS,
)
def _sample_episodes(subject: Subject) -> Any:
    return len(subject.built.env_runner.sample(num_episodes=1))


_STOPPED = Refusal("was stopped and cannot continue training", "Its replay and its processes are gone.")


@call("Building and running", "algorithm.train() after algorithm.stop()", new=_STOPPED, old=_STOPPED)
def _train_after_stop(subject: Subject) -> Any:
    built = subject.config().build_algo()
    built.stop()
    return bool(built.train())


# --- policies ---


@call("Policies", "algorithm.get_module()", stacks=("new",))
def _module(subject: Subject) -> Any:
    built = subject.built
    modules = built.get_module(), built.get_module("default_policy")
    return [isinstance(module, RLModule) for module in modules], modules[0] is modules[1]


@call("Policies", 'algorithm.get_module().forward_inference({"obs": obs})', stacks=("new",))
def _forward(subject: Subject) -> Any:
    with torch.no_grad():
        outputs = subject.built.get_module().forward_inference({"obs": torch.zeros(2, 3)})
    return {len(value) for value in outputs.values()}


@call("Policies", "algorithm.get_policy()", stacks=("old",))
def _policy(subject: Subject) -> Any:
    return isinstance(subject.built.get_policy(), Policy), subject.built.get_policy("nobody")


@call("Policies", "algorithm.compute_single_action(obs)", stacks=("old",))
def _single_action(subject: Subject) -> Any:
    action = subject.built.compute_single_action(np.zeros(3, np.float32), explore=False)
    return action.shape, bool(np.abs(action).max() <= 2)


@call("Policies", "policy.compute_actions(obs_batch)", stacks=("old",))
def _actions(subject: Subject) -> Any:
    actions = subject.built.get_policy().compute_actions(np.zeros((4, 3), np.float32))[0]
    return actions.shape, bool(np.abs(actions).max() <= 1)


@call(
    "Policies",
    "policy.compute_gradients(batch)",
    stacks=("old",),
    old=Refusal("call learn_on_batch", "An update is several steps, each with a gradient of its own."),
)
def _gradients(subject: Subject) -> Any:
    return subject.built.get_policy().compute_gradients(None)


@call("Policies", "algorithm.get_weights()")
def _weights(subject: Subject) -> Any:
    return sorted(subject.built.get_weights())


@call("Policies", "algorithm.add_policy(...)", stacks=("old",))
def _add_policy(subject: Subject) -> Any:
    built = subject.build()
    return built.add_policy("another", type(built.get_policy())) is not None


@call(
    "Policies", "algorithm.set_weights(algorithm.get_weights())", may_be_more=True
)  # ValueError with RLlib's
def _set_weights(subject: Subject) -> Any:
    built = subject.build()
    built.set_weights(subject.built.get_weights())
    return sorted(built.get_weights())


# --- checkpoints ---


def _resumed(subject: Subject, built: Any) -> Any:
    subject.keep(built)
    return built.iteration, built.train()["training_iteration"]


@call("Checkpoints", "Class.from_checkpoint(algorithm.save_to_path(path))")
def _from_checkpoint(subject: Subject) -> Any:
    return _resumed(subject, type(subject.built).from_checkpoint(subject.checkpoint))


@call("Checkpoints", "algorithm.restore_from_path(path)", stacks=("new",))
def _restore_from_path(subject: Subject) -> Any:
    built = subject.build()
    built.restore_from_path(subject.checkpoint)
    return _resumed(subject, built)


@call("Checkpoints", "algorithm.restore(algorithm.save(path))")
def _restore(subject: Subject) -> Any:
    saved = subject.built.save(str(subject.folder / "saved"))
    built = subject.build()
    built.restore(saved)
    return _resumed(subject, built)


@call("Checkpoints", "Algorithm.from_checkpoint(path)")
def _base_from_checkpoint(subject: Subject) -> Any:
    return _resumed(subject, Algorithm.from_checkpoint(subject.checkpoint))


@call("Checkpoints", "algorithm.restore_from_path(path / ..., component=...)", stacks=("new",))
def _restore_component(subject: Subject) -> Any:
    component = "learner_group/learner/rl_module/default_policy"
    built = subject.build()
    built.restore_from_path(f"{subject.checkpoint}/{component}", component=component)
    return built.iteration


@call("Checkpoints", "algorithm.set_state(algorithm.get_state())", stacks=("new",))
def _set_state(subject: Subject) -> Any:
    built = subject.build()
    built.set_state(subject.built.get_state())
    return built.iteration


@call("Checkpoints", "RLModule.from_checkpoint(path / ...)", stacks=("new",))
def _module_from_checkpoint(subject: Subject) -> Any:
    inside = f"{subject.checkpoint}/learner_group/learner/rl_module/default_policy"
    return isinstance(RLModule.from_checkpoint(inside), RLModule)


@call("Checkpoints", "Policy.from_checkpoint(path)", stacks=("old",))
def _policy_from_checkpoint(subject: Subject) -> Any:
    return sorted(Policy.from_checkpoint(subject.checkpoint))


# --- results ---

KEYS = """
training_iteration time_total_s time_this_iter_s trial_id config num_env_steps_sampled_lifetime
env_runners/num_env_steps_sampled env_runners/num_env_steps_sampled_lifetime
env_runners/num_episodes env_runners/num_episodes_lifetime
env_runners/episode_return_mean env_runners/episode_return_min env_runners/episode_return_max
env_runners/episode_len_mean
learners/default_policy learners/__all_modules__/num_env_steps_trained_lifetime
evaluation/env_runners/num_episodes evaluation/env_runners/episode_return_mean
evaluation/env_runners/episode_return_min evaluation/env_runners/episode_return_max
evaluation/env_runners/episode_len_mean
""".split()
NEW_KEYS = [
    f"env_runners/{name}" for name in ("episode_len_min", "episode_len_max", "episode_duration_sec_mean")
]
"""Keys of RLlib's new API stack alone."""
OLD_KEYS = ["info/learner/default_policy/learner_stats", "timesteps_total"]
"""Keys of RLlib's old API stack."""


def _has(result: dict[str, Any], key: str) -> bool:
    value: Any = result
    for part in key.split("/"):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _keys(key: str) -> Callable[[Subject], Any]:
    return lambda subject: (subject.built, _has(subject.result, key))[1]


def _quoted(key: str) -> str:
    return "result" + "".join(f'["{part}"]' for part in key.split("/"))


def _results(keys: list[str], stacks: tuple[Stack, ...]) -> list[Call]:
    return [Call("Results", _quoted(key), _keys(key), stacks, may_be_more=True) for key in keys]


CALLS += [*_results(KEYS, BOTH), *_results(NEW_KEYS, ("new",)), *_results(OLD_KEYS, ("old",))]


# --- callbacks ---

EVENTS: dict[Stack, list[str]] = {
    "new": "on_algorithm_init on_environment_created on_evaluate_start on_evaluate_end on_train_result "
    "on_episode_start on_episode_step on_episode_end on_sample_end on_checkpoint_loaded".split(),
    "old": "on_algorithm_init on_sub_environment_created on_evaluate_start on_evaluate_end on_train_result "
    "on_episode_start on_episode_step on_episode_end on_sample_end on_postprocess_trajectory on_learn_on_batch "
    "on_checkpoint_loaded".split(),
}
_NOT_CREATED = "Use `on_environment_created` and `on_episode_start`."


def _hears(event: str) -> Callable[[Subject], Any]:
    def run(subject: Subject) -> Any:
        heard: list[str] = []

        def method(self: Any, *args: Any, **kwargs: Any) -> None:
            heard.append(event)

        callbacks = type("Watching", (RLlibCallback,), {event: method})
        algorithm = subject.build(subject.config().callbacks(callbacks))
        algorithm.train()
        if event == "on_checkpoint_loaded":
            algorithm.restore(algorithm.save(str(subject.folder / "watched")))
        return bool(heard)

    return run


def _hears_all(stack: Stack) -> Callable[[Subject], Any]:
    """Receive all events in one class, since building an algorithm takes time."""

    def run(subject: Subject) -> Any:
        heard: set[str] = set()

        def method(event: str) -> Any:
            return lambda self, *args, **kwargs: heard.add(event)

        names = {event: method(event) for event in EVENTS[stack]}
        algorithm = subject.build(subject.config().callbacks(type("Watching", (RLlibCallback,), names)))
        algorithm.train()
        algorithm.restore(algorithm.save(str(subject.folder / "watched")))
        return sorted(heard)

    return run


CALLS += [Call("Callbacks", ", ".join(EVENTS[stack]), _hears_all(stack), stacks=(stack,)) for stack in BOTH]
CALLS += [
    Call(
        "Callbacks",
        event,
        _hears(event),
        stacks=("new",),
        refused={"new": Refusal(f"{event} would never be called", _NOT_CREATED)},
    )
    for event in ["on_episode_created"]
]


# --- options ---

_OWN = {
    "evaluation_interval": "`evaluation_every` counts environment steps.",
    "evaluation_duration": "`evaluation_episodes` counts episodes.",
    "explore": "A runner always explores, an evaluation never does.",
    "env_to_module_connector": "There are no connectors: wrap the environment.",
    "module_to_env_connector": "There are no connectors: wrap the environment.",
    "batch_mode": "Any number of steps can be sampled.",
    "rl_module_spec": "The networks are the algorithm's: register a sampler.",
    "policies": "There is one agent.",
    "input_": "There is no offline learning.",
    "output": "Transitions are in the checkpoints' replay.",
    "framework": "PyTorch only.",
    "grad_clip": "No gradient clipping, as in the papers.",
    "min_time_s_per_iteration": "An iteration is a number of steps, so that runs repeat.",
}
_SETTERS: dict[str, Callable[[Any], Any]] = {
    "evaluation_interval": lambda c: c.evaluation(evaluation_interval=3),
    "evaluation_duration": lambda c: c.evaluation(evaluation_duration=20),
    "explore": lambda c: c.env_runners(explore=False),
    "env_to_module_connector": lambda c: c.env_runners(env_to_module_connector=lambda *a, **k: []),
    "module_to_env_connector": lambda c: c.env_runners(module_to_env_connector=lambda *a, **k: []),
    "batch_mode": lambda c: c.env_runners(batch_mode="complete_episodes"),
    "rl_module_spec": lambda c: c.rl_module(rl_module_spec=None, model_config={"fcnet_hiddens": [8]}),
    "policies": lambda c: c.multi_agent(policies={"one", "two"}),
    "input_": lambda c: c.offline_data(input_="somewhere"),
    "output": lambda c: c.offline_data(output="somewhere"),
    "framework": lambda c: c.framework("tf2"),
    "grad_clip": lambda c: setattr(c, "grad_clip", 1.0),
    "min_time_s_per_iteration": lambda c: c.reporting(min_time_s_per_iteration=5),
}


def _option(name: str) -> Call:
    def run(subject: Subject) -> Any:
        config = subject.config()
        _SETTERS[name](config)
        config.validate()

    said = "_model_config" if name == "rl_module_spec" else name
    refusal = Refusal(said, _OWN[name])
    return Call("Options", name, run, refused={"new": refusal, "old": refusal})


CALLS += [_option(name) for name in _SETTERS]
