"""Test Weights & Biases offline: the content of the file, and the failures that must not reach a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rllib_hpo.errors import StorageError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.tracking.wandb_logger import WandbRun
from tests.experiments.wandb_file import WandbFile, read_wandb_file

REPOSITORY = Path(__file__).resolve().parents[3]

RUN = """
    import sys
    from pathlib import Path
    from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

    config = {"algorithm": "sac", "lr": 3e-4, "alpha": "auto", "layers": [256, 256]}
    with WandbRun(Path(sys.argv[1]), "offline", name="hopper-0", group="demo", config=config, run_id="abc") as run:
        for step in range(0, 5_000, 1_000):
            run.log({"critic_loss": step / 7}, env_steps=step)
        run.log({"return_mean": 12.5}, env_steps=2_000)  # an evaluation that came late
"""


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


class Child:
    """Use a process per run, with no account, an empty home folder and an empty working directory."""

    def __init__(self, root: Path) -> None:
        self.run = root / "run"
        self.home = root / "home"
        self.cwd = root / "cwd"
        self.home.mkdir()
        self.cwd.mkdir()

    def start(
        self, script: str, *prefix: str, exit_code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        environment = {**inherited, "PYTHONPATH": str(REPOSITORY), "HOME": str(self.home), **variables}
        command = [*prefix, sys.executable, "-c", textwrap.dedent(script), str(self.run)]
        result = subprocess.run(
            command, env=environment, cwd=self.cwd, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == exit_code, result.stderr
        return result

    def lives(self) -> list[WandbFile]:
        """Return one file per process that ran, oldest first."""
        folders = sorted(self.run.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_ctime_ns)
        return [read_wandb_file(path) for folder in folders for path in folder.glob("*.wandb")]


def test_two_runs_of_one_process_are_apart(child: Child) -> None:
    """Each records its own, whichever began last, and one that ends ends alone."""
    child.start("""
        import sys
        from pathlib import Path
        from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

        folder = Path(sys.argv[1])
        seeds = [WandbRun(folder / str(seed), "offline", run_id=f"seed{seed}") for seed in range(2)]
        for step in range(3):
            for seed, run in enumerate(seeds):
                run.log({"loss": 10.0 * seed + step}, env_steps=step)
        seeds[0].finish()
        seeds[1].log({"loss": 13.0}, env_steps=3)
        seeds[1].finish()
    """)
    for seed, number in enumerate((3, 4)):
        (path,) = child.run.glob(f"{seed}/wandb/offline-run-*/*.wandb")
        run = read_wandb_file(path)
        assert (run.run_id, run.exit_code) == (f"seed{seed}", 0)
        assert [row["loss"] for row in run.history] == [10.0 * seed + step for step in range(number)]


def test_offline_file_holds_everything(child: Child) -> None:
    child.start(RUN)
    (life,) = child.lives()
    assert (life.run_id, life.project, life.name, life.group) == ("abc", "rllib-hpo", "hopper-0", "demo")
    expected = {"algorithm": "sac", "lr": 3e-4, "alpha": "auto", "layers": [256, 256]}
    assert {key: life.config[key] for key in expected} == expected
    losses = {row["env_steps"]: row["critic_loss"] for row in life.history if "critic_loss" in row}
    assert losses == {step: step / 7 for step in range(0, 5_000, 1_000)}
    assert [row["env_steps"] for row in life.history if row.get("return_mean") == 12.5] == [2_000]
    assert life.step_metrics["*"] == "env_steps"
    assert life.exit_code == 0


def test_job_type_tags_and_configuration_of_a_training_run(child: Child) -> None:
    script = """
        import sys
        from pathlib import Path
        from rllib_hpo.experiments.config.run_config import resolve
        from rllib_hpo.experiments.tracking.wandb_logger import WandbRun, describe_run

        config = resolve({"algorithm": "sac-hpo", "task": "hopper", "seed": 3})
        about = describe_run(config, "ablation", "k-1")
        with WandbRun(Path(sys.argv[1]), group="ablation/hopper", run_id="abc", **about) as run:
            run.log({"return_mean": 1.0}, env_steps=10)
    """
    child.start(script)
    (life,) = child.lives()
    assert (life.name, life.group, life.job_type) == ("sac-hpo-k-1-hopper-3", "ablation/hopper", "sac-hpo")
    assert life.tags == ["ablation", "hopper", "sac-hpo", "k-1", "Hopper-v4"]
    resolved = resolve({"algorithm": "sac-hpo", "task": "hopper", "seed": 3}).values()
    expected = {**resolved, "sweep": "ablation", "variant": "k-1", "env_id": "Hopper-v4"}
    assert {key: life.config.get(key) for key in expected} == expected


def test_a_model_is_copied_beside_the_run(child: Child, tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

        checkpoint = Path("checkpoint")
        for step in (100, 200):
            (checkpoint / "learner").mkdir(parents=True, exist_ok=True)
            (checkpoint / "learner" / "state.pkl").write_text(f"weights {step}")
            (checkpoint / "replay.npy").write_text("gigabytes")
            with WandbRun(Path(sys.argv[1]), run_id="abc") as run:
                run.log_model(checkpoint, ["learner/state.pkl"], {"env_steps": step}, is_best=step == 100)
            (checkpoint / "learner" / "state.pkl").unlink()  # as where checkpoints are pruned
    """
    result = child.start(script)
    assert (result.stdout, result.stderr) == ("", "")
    assert not list(child.home.rglob("*"))
    models = [model for life in child.lives() for model in life.models]
    assert [(model.name, model.type) for model in models] == [("model-abc", "model")] * 2
    assert [sorted(model.aliases) for model in models] == [["best", "latest"], ["latest"]]
    assert [model.metadata for model in models] == [{"env_steps": 100}, {"env_steps": 200}]
    for model, step in zip(models, (100, 200), strict=True):
        ((name, copy),) = model.files.items()
        assert (name, copy.read_text()) == ("learner/state.pkl", f"weights {step}")
        assert copy.is_relative_to(child.run / "wandb")


FILM = """
    import sys
    from pathlib import Path
    from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

    def film(path):
        path.write_bytes(b"a film")

    with WandbRun(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "offline", run_id="abc") as run:
        run.log_video(film, env_steps=5_000)
        run.log({"return_mean": 12.5}, env_steps=6_000)
"""


def test_a_film_is_kept_in_the_run(child: Child) -> None:
    child.start(FILM)
    (life,) = child.lives()
    (row,) = (row for row in life.history if "video/path" in row)
    assert (row["env_steps"], row["video/_type"]) == (5_000, "video-file")
    (kept,) = child.run.glob(f"wandb/offline-run-*/files/{row['video/path']}")
    assert kept.read_bytes() == b"a film"


def test_a_film_that_fails_is_one_warning_and_the_run_goes_on(child: Child) -> None:
    result = child.start(FILM.replace('path.write_bytes(b"a film")', "raise OSError('no EGL here')"))
    assert result.stderr == "No video for Weights & Biases: no EGL here\n"
    (life,) = child.lives()
    assert [row["return_mean"] for row in life.history] == [12.5]
    assert life.exit_code == 0


def test_disabled_films_and_copies_nothing(child: Child) -> None:
    script = FILM.replace('sys.argv[2] if len(sys.argv) > 2 else "offline"', '"disabled"')
    copied = "        run.log_model(Path('nothing'), ['nothing'], {}, is_best=True)\n"
    told = "        print('wandb' in sys.modules)\n"
    result = child.start(script.replace('b"a film"', "no_such_name") + copied + told)
    assert (result.stdout, result.stderr) == ("False\n", "")
    assert not child.run.exists()


def test_an_exception_ends_the_run_as_failed(child: Child) -> None:
    result = child.start(RUN + "        raise RuntimeError('diverged')\n", exit_code=1)
    assert "RuntimeError: diverged" in result.stderr
    (life,) = child.lives()
    assert life.exit_code == 1
    assert len(life.history) == 6


def test_a_resumed_run_goes_on_under_the_same_id(child: Child) -> None:
    child.start(RUN)
    child.start(RUN.replace("range(0, 5_000", "range(3_000, 8_000"))
    first, second = child.lives()
    assert first.run_id == second.run_id == "abc"
    # W&B keeps the highest step it has seen and drops what lies below: nothing new may do so.
    assert second.history[0]["_step"] == second.history[0]["env_steps"] == 3_000
    assert max(row["_step"] for row in first.history) < max(row["_step"] for row in second.history)
    for life in (first, second):
        steps = [row["_step"] for row in life.history]
        assert steps == sorted(set(steps))


def test_nothing_is_printed_and_nothing_is_written_elsewhere(child: Child) -> None:
    result = child.start(RUN)
    assert (result.stdout, result.stderr) == ("", "")
    assert [path.name for path in child.run.iterdir()] == ["wandb"]
    assert not list(child.home.rglob("*"))
    assert not list(child.cwd.rglob("*"))


def test_offline_opens_no_socket_to_the_network_from_python(child: Child) -> None:
    watch = """
    import sys
    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo") and not str(arguments[-1]).startswith("/"):
            print(event, arguments)
    sys.addaudithook(watch)
    """
    assert child.start(watch + RUN).stdout == ""


def test_offline_opens_no_socket_to_the_network_from_any_process(child: Child, tmp_path: Path) -> None:
    """W&B's service processes open none either; the test traces their system calls."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace))
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this container does not allow strace")
    child.start(RUN, *strace)
    calls = trace.read_text().splitlines()
    assert any("connect(" in call for call in calls)  # its own service, by a Unix socket
    assert [call for call in calls if "AF_INET" in call] == []
    assert len(child.lives()) == 1


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_the_mode_given_wins_over_the_environment(child: Child, mode: str) -> None:
    child.start(RUN, WANDB_MODE=mode)
    assert len(child.lives()) == 1


def test_online_without_an_account_is_one_clear_sentence(child: Child) -> None:
    script = """
        import sys
        from pathlib import Path
        from rllib_hpo.errors import UserError
        from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

        try:
            WandbRun(Path(sys.argv[1]), "online")
        except UserError as error:
            print(error)
    """
    result = child.start(script)
    (sentence,) = result.stdout.splitlines()
    assert sentence.startswith("Weights & Biases could not start in mode 'online'")
    assert "'offline', which needs no account" in sentence


def test_training_goes_on_when_the_service_dies(child: Child) -> None:
    script = """
        import os, signal, sys, time
        from pathlib import Path
        from rllib_hpo.experiments.tracking.wandb_logger import WandbRun

        def service():
            for status in Path("/proc").glob("[0-9]*/stat"):
                try:
                    name, fields = status.read_text().rsplit(")", 1)
                except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    continue
                if "wandb-core" in name and int(fields.split()[1]) == os.getpid():
                    return int(status.parent.name)

        with WandbRun(Path(sys.argv[1]), "offline") as run:
            os.kill(service(), signal.SIGKILL)
            time.sleep(0.5)
            for step in range(10):
                run.log({"critic_loss": 1.0}, env_steps=step)
        print("trained")
    """
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find W&B's service process")
    result = child.start(script)
    assert result.stdout == "trained\n"
    assert result.stderr.count("is disabled from now on") == 1


def test_disabled_does_nothing_and_imports_nothing(child: Child) -> None:
    result = child.start(RUN.replace('"offline"', '"disabled"') + "\n    print('wandb' in sys.modules)")
    assert result.stdout == "False\n"
    assert not child.run.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"^Cannot write .*wandb: File exists\.$"):
        WandbRun(tmp_path)


def test_the_parser_fails_on_an_empty_file(tmp_path: Path) -> None:
    empty = tmp_path / "run.wandb"
    empty.write_bytes(b":W&B\xe1\xbe\x00")
    with pytest.raises(ValueError, match="holds no run"):
        read_wandb_file(empty)
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a \.wandb file"):
        read_wandb_file(empty)
