"""Write docs/rllib-support.md: `python -m tests.rllib.conformance.page`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.validation import (
    EFFECTIVE_OPTIONS,
    NEW_STACK_OPTIONS,
    OLD_STACK_OPTIONS,
    REPLACED_OPTIONS,
)
from tests.rllib.conformance.calls import BOTH, CALLS, Call

PATH = Path(__file__).resolve().parents[3] / "docs" / "rllib-support.md"
_HEAD = """# What of RLlib is supported

The algorithms are RLlib's `Algorithm`, with `AlgorithmConfig`, `RLModule`, `Learner` and `EnvRunner`; on the old API
stack `Policy` and `RolloutWorker`. Each call below is tested beside RLlib's own SAC (Ray 2.60): it does the same, or is
refused in a sentence that says what to use. `make support-page` writes this page.
"""
_METHODS = (
    "environment env_runners learners evaluation callbacks resources fault_tolerance reporting debugging "
    "checkpointing multi_agent offline_data rl_module framework python_environment"
).split()


def _verdict(call: Call, stack: str) -> str:
    if stack in call.refused:
        return "refused"
    return "yes" if stack in call.stacks else ""


def _calls() -> Iterator[str]:
    for group in dict.fromkeys(call.group for call in CALLS):
        yield f"\n## {group}\n\n| call | new stack | old stack | why not |\n| --- | --- | --- | --- |"
        for call in (call for call in CALLS if call.group == group):
            why = " ".join(dict.fromkeys(refusal.reason for refusal in call.refused.values()))
            verdicts = " | ".join(_verdict(call, stack) for stack in BOTH)
            yield f"| `{call.code}` | {verdicts} | {why} |"


def options_of(method: str) -> list[str]:
    """Return the arguments of an AlgorithmConfig method that are currently options."""
    parameters = inspect.signature(getattr(AlgorithmConfig, method)).parameters
    known = vars(AlgorithmConfig())
    return [name for name in parameters if name in known or f"callbacks_{name}" in known]


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names) or "none"


def _options() -> Iterator[str]:
    ours = ActorCriticConfig().settings_class.model_fields
    yield "\n## Options of AlgorithmConfig\n"
    yield "What has an effect; every other option is refused where it differs from its default.\n"
    yield "| method | both stacks | new stack only | old stack only |\n| --- | --- | --- | --- |"
    for method in _METHODS:
        names = [
            (name, name if name in vars(AlgorithmConfig()) else f"callbacks_{name}")
            for name in options_of(method)
        ]
        columns = [
            [name for name, option in names if option in allowed]
            for allowed in (EFFECTIVE_OPTIONS, NEW_STACK_OPTIONS, OLD_STACK_OPTIONS)
        ]
        yield f"| `{method}()` | {' | '.join(map(_names, columns))} |"
    yield "| `training()` | the settings of the algorithm (`rllib-hpo settings ALGORITHM`) | | |"
    yield "\n| instead of | use |\n| --- | --- |"
    for name, instead in REPLACED_OPTIONS.items():
        assert name not in ours
        yield f"| `{name}` | {instead} |"


def text() -> str:
    """Return the text of the page."""
    return "\n".join([_HEAD, *_calls(), *_options()]).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
