"""Test how a search begins, without running one: what is refused leaves nothing behind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rllib_hpo.cli import main
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.process.lock import locked
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.sweeps import plan
from rllib_hpo.experiments.sweeps.plan import SweepFiles, publish_sweep, read_plan
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.sweep import remove_new_sweep
from rllib_hpo.experiments.sweeps.trial import TrialOptions
from rllib_hpo.experiments.tuning import search as searches
from rllib_hpo.experiments.tuning.directory import open_search, start_search
from tests.experiments.tuning.test_decisions import SPACE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a search file."""
    path = tmp_path / "search.yaml"
    path.write_text(SPACE)
    return path


def refusal(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run `rllib-hpo tune WORDS`, and return its one sentence."""
    monkeypatch.setattr(sys, "argv", ["rllib-hpo", "tune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_missing_optuna_is_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = refusal([str(file), "--out", str(tmp_path / "out")], monkeypatch, capsys)
    assert "needs Optuna: `pip install 'rllib-hpo[search]'`" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name either a search file or, with --resume, the directory of a search."),
        (["--resume", "nothing"], "is not a sweep directory: it has no plan.json"),
        (["search.yaml", "--resume", "x"], "Name either a search file or"),
        (["search.yaml", "--task", "Pendulum-v11"], "Pendulum-v1"),
        (["search.yaml", "--out", "."], "already exists; resume it with"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str],
    sentence: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(file.parent)
    assert sentence in refusal(words, monkeypatch, capsys)
    assert list(file.parent.iterdir()) == [file]


def test_a_search_keeps_its_changes_and_takes_more_trials(file: Path, tmp_path: Path) -> None:
    files = SweepFiles(tmp_path / "out")
    changes = {"task": "MountainCarContinuous-v0", "settings": {"num_env_runners": 1}}
    made = start_search(file, changes, files)
    again = open_search(files)
    assert again == made
    assert open_search(files, trials=20).search.file.trials == 20
    assert open_search(files).search.file.trials == 20
    assert read_plan(files)["search"]["changes"] == {**changes, "trials": 20}
    with pytest.raises(UserError, match="--trials 8 is less than the 20"):
        open_search(files, trials=8)


def test_two_drivers_do_not_share_a_search(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "LOCK_TIMEOUT_S", 0.1)
    directory = start_search(file, {"scheduler": "pbt"}, SweepFiles(tmp_path / "out"))
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match=r"Another process \(pid \d+\) is training in "),
    ):
        searches.run_search(directory, SweepProgress(Console()), TrialOptions())
    remove_new_sweep(directory.files)
    assert not (tmp_path / "out").exists()


def test_a_search_that_has_begun_is_kept(file: Path, tmp_path: Path) -> None:
    directory = start_search(file, {}, SweepFiles(tmp_path / "out"))
    (tmp_path / "out" / "trials" / "trial-0000").mkdir(parents=True)
    (tmp_path / "out" / "trials" / "trial-0000" / "events.jsonl").touch()
    remove_new_sweep(directory.files)
    assert (tmp_path / "out" / "search.yaml").exists()


@pytest.mark.parametrize("missing", ["trials", "plan.json", "search.yaml"])
def test_a_refused_search_goes_whole_whatever_is_missing(missing: str, file: Path, tmp_path: Path) -> None:
    """Also where storage does not answer, as when that is why it was refused."""
    files = SweepFiles(tmp_path / "out")
    directory = start_search(file, {}, files)
    directory.add_trial("trial-0000", directory.search.config(0, {"step_size": 0.1}))
    path = files.directory / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "file").touch()
    remove_new_sweep(files, Storage.open(str(tmp_path / "file" / "below a file")))
    assert not files.directory.exists()
    assert (tmp_path / "file").exists()


def test_storage_that_refuses_a_search_leaves_no_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(files: SweepFiles, storage: Storage) -> None:
        (tmp_path / "kept" / "mine").rmdir()
        (tmp_path / "kept" / "mine").touch()
        publish_sweep(files, storage)

    monkeypatch.setattr(plan, "publish_sweep", fail)
    words = [str(file), "--out", str(tmp_path / "out"), "--storage", str(tmp_path / "kept")]
    assert "Cannot reach the storage" in refusal(words, monkeypatch, capsys)
    assert not (tmp_path / "out").exists()
