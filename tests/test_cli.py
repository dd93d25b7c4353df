"""Test the command line: help, and that every user error ends in one sentence and exit code 2."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from rllib_hpo.cli import main
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events

TINY = {
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_every": 40,
    "evaluation_episodes": 1,
    "checkpoint_every": 40,
}


def run(*words: str) -> int:
    """Run `rllib-hpo WORDS` in this process; return its exit code."""
    sys.argv = ["rllib-hpo", *words]
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def train(out: Path, *words: str, **settings: object) -> int:
    """Train for 40 steps."""
    options = [word for name, value in (TINY | settings).items() for word in ("--set", f"{name}={value}")]
    return run("train", "--steps", "40", "--wandb", "disabled", "--out", str(out), *options, *words)


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a module for --import with environments that no algorithm can handle, or that fail after a while."""
    shutil.copy(Path(__file__).parent / "bad_environments.py", tmp_path / "bad_environments.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "bad_environments"


MISTAKES = {
    "unknown task": (["--task", "hoper"], "Did you mean 'hopper'?"),
    "unknown algorithm": (["--algorithm", "sac-hp"], "Did you mean 'sac-hpo'?"),
    "unknown setting": (["--set", "leapfrog_stps=3"], "Did you mean 'leapfrog_steps'?"),
    "setting of another algorithm": (
        ["--algorithm", "sac", "--set", "leapfrog_steps=3"],
        "not a setting of SAC",
    ),
    "K < 0": (["--set", "leapfrog_steps=-1"], "leapfrog_steps=-1 must be greater than or equal to 0"),
    "step size 0": (["--set", "step_size=0"], "step_size=0"),
    "std 0": (["--set", "momentum_std_train=0"], "momentum_std_train=0"),
    "wrong type": (["--set", "leapfrog_steps=many"], "leapfrog_steps='many' must be"),
    "heating": (["--set", "tempering=true"], "would amplify the momentum"),
    "no value": (["--set", "leapfrog_steps"], "must be NAME=VALUE"),
    "discrete actions": (["--task", "CartPole-v1"], "Discrete actions"),
    "unbounded actions": (
        ["--import", "bad_environments", "--task", "UnboundedActions-v0"],
        "unbounded actions",
    ),
    "image observations": (["--import", "bad_environments", "--task", "Images-v0"], "image observations"),
    "step sizes of another dimension": (
        ["--task", "hopper", "--set", "step_size=[0.1, 0.2]"],
        "step_size has 2",
    ),
    "module that is not there": (["--import", "no_such_module"], "--import no_such_module"),
    "no configuration file": (["--config", "no_such_file.yaml"], "no_such_file.yaml cannot be read"),
}


@pytest.mark.usefixtures("environments")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the problem and the valid values, no traceback, nothing trained."""
    words, expected = MISTAKES[mistake]
    assert train(tmp_path / "run", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("task", "what"), [("NaNObservation-v0", "observation"), ("NaNReward-v0", "reward")])
@pytest.mark.usefixtures("environments")
def test_what_is_not_finite_is_named_and_nothing_is_lost(
    task: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training stops with a sentence naming step and tensor; the last good checkpoint and all rows remain."""
    words = ["--import", "bad_environments", "--task", task, "--steps", "200"]
    assert train(tmp_path / "run", *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert what in line
    assert "after 95 environment steps" in line  # of LIMIT, three evaluations of ten steps took the others
    newest = CheckpointStore(tmp_path / "run").newest_valid()
    assert newest is not None
    assert newest.name == "step-0000000080"


@pytest.mark.parametrize("where", ["constructor", "reset"])
@pytest.mark.usefixtures("environments")
def test_a_users_own_error_at_the_start(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence is followed once by the traceback; nothing is left that would block the corrected command."""
    task = f"Raising{where.capitalize()}-v0"
    assert train(tmp_path / "run", "--import", "bad_environments", "--task", task) == 2
    sentence, *trace = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith(f"Error: Environment '{task}' ")
    assert f"LookupError{' in reset()' if where == 'reset' else ''}: no licence in the {where}" in sentence
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == f"LookupError: no licence in the {where}"
    assert sum("Traceback" in line for line in trace) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stack", ["new", "old"])
@pytest.mark.usefixtures("environments")
def test_a_users_own_error_while_training(
    stack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint and all rows remain, and the events record the error."""
    import bad_environments

    monkeypatch.setattr(bad_environments, "steps_taken", Counter())
    words = ["--import", "bad_environments", "--task", "RaisingStep-v0", "--steps", "200"]
    assert train(tmp_path / "run", *words, api_stack=stack) == 2
    err = capsys.readouterr().err
    said = "Environment 'RaisingStep-v0' raised LookupError in step(): no licence in the late step"
    assert err.count("Traceback (most recent call last):") == 1
    assert f"Error: {said}" in err
    failed = read_events(tmp_path / "run" / EVENTS_FILE)[-1]
    assert failed["event"] == "failed"
    assert failed["error"].startswith(said)
    assert CheckpointStore(tmp_path / "run").newest_valid() is not None


SWEEP = """
sweep: little
description: Two tasks, one of them broken.
algorithms: [sac]
tasks: [Pendulum-v1, CartPole-v1, RaisingReset-v0]
seeds: 0-1
settings: {steps: 200, warmup_steps: 50, hidden_units: 8, evaluation_episodes: 1}
"""


@pytest.mark.usefixtures("environments")
def test_a_sweep_with_broken_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run lists the others, with a sentence for each broken one; a start is rejected and leaves nothing."""
    file, out = tmp_path / "little.yaml", tmp_path / "sweep"
    file.write_text(SWEEP)
    words = [str(file), "--out", str(out), "--import", "bad_environments"]
    assert run("sweep", *words, "--dry-run") == 2
    printed = capsys.readouterr()
    assert "2 trials, 400 environment steps" in printed.out
    assert "sac-Pendulum-v1-seed1" in printed.out
    assert "CartPole" not in printed.out
    assert run("sweep", *words) == 2
    for told in (printed.err, capsys.readouterr().err):
        sentence = told.splitlines()[0]
        assert (
            "sac-CartPole-v1-seed0, sac-CartPole-v1-seed1 (Environment 'CartPole-v1' has Discrete" in sentence
        )
        assert "sac-RaisingReset-v0-seed0" in sentence
        assert told.count("Traceback (most recent call last):") == 1
        assert not out.exists()


def test_a_run_goes_on_only_as_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing directory is not overwritten; resuming keeps algorithm, task and settings; more steps are allowed."""
    out = tmp_path / "run"
    assert train(out, "--algorithm", "sac", "--task", "Pendulum-v1") == 0
    capsys.readouterr()
    for words, expected in (
        (("--out", str(out)), "already exists"),
        (("--resume", str(out), "--algorithm", "sac-hpo"), "A resumed run keeps its settings"),
        (("--resume", str(out), "--set", "lr=0.1"), "A resumed run keeps its settings"),
        (("--resume", str(out), "--set", "seed=3"), "A resumed run keeps its settings"),
        (("--resume", str(out), "--steps", "10"), "is less than the 40"),
        (("--resume", str(tmp_path)), "is not a run directory"),
        ((), "Give --out"),
    ):
        assert run("train", "--wandb", "disabled", *words) == 2
        assert expected in capsys.readouterr().err
    assert run("train", "--resume", str(out), "--steps", "80", "--wandb", "disabled") == 0
    printed = capsys.readouterr().out
    paths = [Path(line.split()[-1]) for line in printed.strip().splitlines()[-4:]]
    assert [path.name for path in paths] == ["config.yaml", "results", "last", "curve.png"]
    assert all(path.exists() for path in paths)

    assert run("evaluate", str(out), "--episodes", "2") == 0
    first = capsys.readouterr().out
    assert run("evaluate", str(out / "checkpoints" / "last"), "--episodes", "2") == 0
    assert capsys.readouterr().out == first
    assert "sac on Pendulum-v1 after 80 steps: return" in first


@pytest.mark.parametrize("stack", ["new", "old"])
def test_a_result_row_can_be_repeated(stack: str, tmp_path: Path) -> None:
    """--config with the file of a row trains that configuration again, to the same rows."""
    from rllib_hpo.results import read_rows, without_volatile

    words = ["--algorithm", "sac-nf", "--task", "Pendulum-v1", "--seed", "5", "--set", f"api_stack={stack}"]
    assert train(tmp_path / "first", *words) == 0
    (row,) = (tmp_path / "first" / "results").rglob("*-0000000040.parquet")
    again = ["train", "--config", str(row), "--out", str(tmp_path / "again"), "--wandb", "disabled"]
    assert run(*again) == 0
    first, second = (without_volatile(read_rows(tmp_path / name / "results")) for name in ("first", "again"))
    assert first.num_rows == 2
    assert second.equals(first)


def test_a_path_may_hold_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run[bold]"
    assert train(out) == 0
    assert str(out / "results") in capsys.readouterr().out
    assert run("results", "show", str(out)) == 0
    assert run("train", "--resume", str(out), "--steps", "80") == 0
    assert str(out) in capsys.readouterr().out


def test_a_run_on_the_old_stack_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(out, "--algorithm", "sac", "--task", "Pendulum-v1", "--set", "api_stack=old") == 0
    assert run("train", "--resume", str(out), "--steps", "80", "--wandb", "offline") == 0
    assert run("evaluate", str(out), "--episodes", "2") == 0
    assert "sac on Pendulum-v1 after 80 steps: return" in capsys.readouterr().out
    assert run("train", "--resume", str(out), "--set", "api_stack=new", "--wandb", "disabled") == 2
    assert "api_stack is 'old', not 'new'" in capsys.readouterr().err


def test_help_and_tasks_introduce_a_newcomer(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command describes itself; the tasks are listed with the paper's numbers."""
    for words, expected in (
        (("--help",), ("train", "evaluate", "tasks")),
        (("train", "--help"), ("--algorithm", "--task", "--resume", "NAME=VALUE")),
        (("evaluate", "--help"), ("--episodes", "--video")),
        (("tasks",), ("halfcheetah", "HumanoidPyBulletEnv-v0")),
        (("settings", "sac-hpo"), ("momentum_std_explore", "Leapfrog steps K.")),
    ):
        assert run(*words) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in expected)


def test_the_making_of_a_cache_of_fonts_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """matplotlib logs it on a new machine if that takes five seconds."""
    assert run("tasks") == 0
    logging.getLogger("matplotlib.font_manager").warning("building the font cache")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [["--only", "task=Hopper-v4", "--only", "algorithm=td3"], ["--only", "task=Hopper-v4,algorithm=td3"]],
)
def test_trials_match_every_only(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several options none is dropped."""
    file = tmp_path / "little.yaml"
    text = SWEEP.replace("[sac]", "[sac, td3]").replace("CartPole-v1, RaisingReset-v0", "Hopper-v4")
    file.write_text(text)
    assert run("sweep", str(file), "--dry-run", *words) == 0
    printed = capsys.readouterr().out
    assert "2 trials, 400 environment steps" in printed
    assert printed.count("td3-Hopper-v4-seed") == 2
    assert run("sweep", str(file), "--dry-run", *words, "--only", "algorithm=sac") == 2
    assert "--only algorithm=sac: algorithm is already td3" in capsys.readouterr().err


def test_a_dry_run_counts_seeds_that_share_a_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot share one is refused before anything starts, and what has no turn to wait for is told."""
    file, out = tmp_path / "little.yaml", tmp_path / "sweep"
    file.write_text(SWEEP.replace("Pendulum-v1, CartPole-v1, RaisingReset-v0", "Hopper-v4"))
    words = ["sweep", str(file), "--out", str(out), "--seeds", "0-2", "--seeds-per-trial", "2"]
    assert run(*words, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "3 trials in 2 groups of seeds, 600 environment steps" in printed
    assert " groups at a time, about " in printed
    assert [f"sac-Hopper-v4-seed{seed}" in printed for seed in range(3)] == [True] * 3
    assert run(*words, "--dry-run", "--evaluation-num-env-runners", "1") == 0
    printed = capsys.readouterr().out
    assert "3 trials in 3 groups of seeds" in printed
    assert printed.count("are trained apart: trial sac-Hopper-v4-seed0 and 2 more.") == 1
    file.write_text(file.read_text().replace("settings: {", "settings: {api_stack: old, "))
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert (
        "seeds_per_trial=2 needs api_stack=new, but the trial sac-Hopper-v4-seed0 has api_stack=old." in line
    )
    assert run("sweep", str(file), "--seeds-per-trial", "0") == 2
    assert not out.exists()
