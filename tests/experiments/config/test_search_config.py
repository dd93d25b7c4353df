"""Test search files: what is read, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.algorithms.registry import BUILT_IN
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.search_config import Search, is_search, read_search

ROOT = Path(__file__).resolve().parents[3]
GOOD = """\
search: mine
algorithm: sac-hpo
task: Pendulum-v1
steps: 90_000
trials: 4
seed: 7
scheduler: asha
settings: {evaluation_every: 5_000}
space:
  step_size: {low: 0.02, high: 0.5, log: true}
  leapfrog_steps: {low: 1, high: 4}
  alpha: {choices: [auto, 0.2]}
first:
  - {alpha: 0.2}
"""


def read(folder: Path, text: str, **changes: Any) -> Search:
    """Write a search file and read it."""
    path = folder / "search.yaml"
    path.write_text(text)
    return read_search(path, changes)


def test_a_file_is_read(tmp_path: Path) -> None:
    search = read(tmp_path, GOOD)
    assert (search.steps, search.whole, search.rungs) == (90_000, {"leapfrog_steps"}, (10_000, 30_000))
    config = search.config(3, {"step_size": 0.1, "leapfrog_steps": 2, "alpha": 0.2})
    assert (config.run.seed, config.run.steps, config.settings.evaluation_every) == (10, 90_000, 5_000)
    assert list(search.fresh_seeds) == [11, 12, 13, 14, 15]
    assert is_search(tmp_path / "search.yaml")
    assert not is_search(ROOT / "tune_configs" / "smoke.yaml")


def test_changes_replace_the_files_keys(tmp_path: Path) -> None:
    search = read(tmp_path, GOOD, trials=9, steps=270_000, settings={"num_env_runners": 2})
    assert (search.file.trials, search.rungs) == (9, (30_000, 90_000))
    config = search.config(0, {"step_size": 0.1, "leapfrog_steps": 2, "alpha": "auto"})
    assert (config.run.num_env_runners, config.settings.evaluation_every) == (2, 5_000)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tune_configs" / "search").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_repositorys_files_are_valid(path: Path) -> None:
    """Each is headed by its command, its trials and its steps."""
    search, head = read_search(path), path.read_text().splitlines()
    millions = f"{search.steps * search.file.trials / 1e6:g} M steps"
    assert head[1].startswith(f"# rllib-hpo tune tune_configs/search/{path.name} --task ")
    assert f"--steps {search.steps} --trials {search.file.trials} " in head[1]
    assert head[2].startswith(f"# {search.file.trials} ")
    assert millions in head[2]


@pytest.mark.parametrize("algorithm", sorted(BUILT_IN))
def test_every_algorithm_can_be_searched(algorithm: str, tmp_path: Path) -> None:
    text = f"""\
search: any
algorithm: {algorithm}
task: {"halfcheetah-speed1" if "lagrangian" in algorithm else "Pendulum-v1"}
trials: 2
space:
  tau: {{low: 0.001, high: 0.1, log: true}}
"""
    assert read(tmp_path, text).config(1, {"tau": 0.01}).settings.tau == 0.01


MISTAKES = [
    ("trials: 4", "trails: 4", "line 5: 'trails' is not a valid key here. Did you mean 'trials'?"),
    ("trials: 4", "trials: 0", "line 5: trials=0 must be greater than or equal to 1"),
    ("trials: 4\n", "", "'trials' is missing"),
    ("sac-hpo", "sac-hop", "line 2: Unknown algorithm 'sac-hop'. Did you mean 'sac-hpo'?"),
    ("Pendulum-v1", "Pendulum-v11", "line 3:"),
    ("low: 0.02", "lo: 0.02", "line 10: 'lo' is not a valid key here. Did you mean 'low'?"),
    ("low: 0.02, ", "", "line 10: space.step_size: give either low and high, or choices"),
    ("high: 0.5", "high: 0.01", "line 10: space.step_size: low=0.02 must be below high=0.01"),
    ("low: 0.02", "low: 0", "line 10: space.step_size: low=0 must be above 0 for a logarithmic range"),
    ("high: 4", "high: 4.5", "line 11: leapfrog_steps=4.5 must be a whole number"),
    ("[auto, 0.2]", "[auto, 0.2, -1.0]", "line 12: alpha=-1.0 must be"),
    ("[auto, 0.2]", "[0.2, 0.2]", "line 12: space.alpha: a choice stands there twice"),
    ("step_size:", "stepsize:", "line 10: 'stepsize' is not a setting of sac-hpo. Did you mean 'step_size'?"),
    ("step_size:", "seed:", "line 10: 'seed' cannot be searched: trials are compared by it"),
    ("step_size:", "cost_limit:", "line 10: 'cost_limit' cannot be searched: trials are compared by it"),
    ("{evaluation_every: 5_000}", "{step_size: 0.1}", "line 8: 'step_size' is searched: it stands in space"),
    ("{evaluation_every: 5_000}", "{task: hopper}", "line 8: 'task' is a key of the search file itself"),
    ("{alpha: 0.2}", "{alpha: 0.3}", "line 14: alpha=0.3 is not in the space"),
    (
        "{alpha: 0.2}",
        "{alpa: 0.2}",
        "line 14: the search has no searched setting 'alpa'. Did you mean 'alpha'?",
    ),
    (
        "scheduler: asha",
        "scheduler: hyperband",
        "line 7: scheduler='hyperband' must be 'none', 'asha' or 'pbt'",
    ),
    ("scheduler: asha", "asha: {}", "line 7: 'asha' has no effect with scheduler: none"),
    ("scheduler: asha", "scheduler: pbt", "line 12: pbt cannot search alpha"),
    (
        "scheduler: asha",
        "scheduler: asha\nasha: {first_rung: 7_000}",
        "line 8: first_rung=7000 must be a multiple of evaluation_every=5000",
    ),
    (
        "scheduler: asha",
        "scheduler: asha\nasha: {first_rung: 90_000}",
        "line 8: first_rung=90000 must be below the 90000 steps of a trial",
    ),
    (
        "evaluation_every: 5_000",
        "evaluation_every: 500",
        "steps_per_iteration=1000 must divide evaluation_every=500",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence(right: str, wrong: str, sentence: str, tmp_path: Path) -> None:
    assert right in GOOD
    with pytest.raises(UserError) as caught:
        read(tmp_path, GOOD.replace(right, wrong))
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0
