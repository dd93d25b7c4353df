"""Test each check of the doctor on right and wrong installations."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from rllib_hpo.experiments.cluster.driver import DRIVER
from rllib_hpo.experiments.jobs import doctor
from tests.test_cli import run

NODE = {
    "name": "one",
    "resources": {"CPU": 4.0, "GPU": 0.0},
    "python": "3.11.7",
    "version": "0.1.0",
    "commit": "a" * 40,
    "sees": True,
    "ahead_s": 0.01,
}


def test_python() -> None:
    states = [
        doctor.python_check(version).state
        for version in ((3, 11, 7), (3, 12, 1), (3, 13, 0), (3, 10, 0), (3, 14, 0))
    ]
    assert states == ["ok", "note", "note", "problem", "problem"]
    assert [doctor.physics_check(version).state for version in ("3.4.0", "3.5.0", "4.0.1")] == [
        "ok",
        "note",
        "note",
    ]


def test_versions(tmp_path: Path) -> None:
    versions, pins = doctor.installed(), tmp_path / "constraints.txt"
    pins.write_text(f"# of the tests\nnumpy=={versions['numpy']}\n")
    (check,) = doctor.version_checks(versions, pins)
    assert check.state == "ok"
    pins.write_text("numpy==1.0\n")
    (check,) = doctor.version_checks(versions, pins)
    assert (check.state, "not 1.0" in check.found) == ("note", True)
    (check,) = doctor.version_checks({**versions, "mujoco": "3.2.0"}, pins)
    assert (check.state, "mujoco 3.2.0" in check.found) == ("problem", True)
    (check,) = doctor.version_checks({k: v for k, v in versions.items() if k != "wandb"}, tmp_path / "none")
    assert (check.state, "wandb missing" in check.found) == ("problem", True)


def test_processes() -> None:
    assert doctor.process_check("x", "pass", "").state == "ok"
    assert doctor.process_check("x", "import no_such_thing", "").found.startswith("ModuleNotFoundError")
    assert doctor.process_check("x", "import os; os.abort()", "").found == "killed by signal 6"


def test_secrets_are_looked_after_and_never_told(tmp_path: Path) -> None:
    netrc, key = tmp_path / ".netrc", "5eed5a1adc0ffee5a1ad0ddba115eed5a1adbead"
    assert doctor.wandb_check({}, netrc).state == "note"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {key}\n")
    for mode, state in ((0o644, "problem"), (0o600, "ok")):
        netrc.chmod(mode)
        check = doctor.wandb_check({}, netrc)
        assert check.state == doctor.token_check(netrc).state == state
        assert key not in doctor.line(check)
    assert key not in doctor.line(doctor.wandb_check({"WANDB_API_KEY": key}, netrc))
    assert doctor.token_check(tmp_path / "none").state == "note"


def test_limits(tmp_path: Path) -> None:
    assert [doctor.open_files_check(limit).state for limit in (1_024, 65_536)] == ["problem", "ok"]
    assert doctor.disk_check(tmp_path / "not" / "there").state in ("ok", "note")
    assert doctor.ray_results_check(tmp_path / "none").state == "ok"
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert doctor.disk_check(tmp_path / "runs", mounts).state == "note"
    assert doctor.file_system(Path("/"), mounts) == "ext4"


def test_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = doctor.file_system_check(tmp_path / "not" / "there")
    assert (check.state, "symbolic links" in check.found) == ("ok", True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for module, name in ((os, "symlink"), (fcntl, "flock"), (os, "fsync")):
        monkeypatch.setattr(module, name, refuse)
    check = doctor.file_system_check(tmp_path)
    assert check.state == "note"
    assert "no symbolic links, no file locks, no fsync of files, no fsync of folders" in check.found
    assert check.remedy.count("a power cut may cost the newest rows and checkpoints") == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    check = doctor.file_system_check(Path("/proc/nowhere"))
    assert (check.state, check.found.startswith("/proc/nowhere is not writable: ")) == ("problem", True)


@pytest.mark.parametrize(
    ("cuda", "module", "remedy"),
    [
        (
            "13.0",
            "x86_64 Kernel Module  570.86.15 ",
            f"update the driver to {DRIVER} or later, or install torch",
        ),
        ("13.0", f"Open Kernel Module for x86_64  {DRIVER}.95.05 ", "check whether CUDA_VISIBLE_DEVICES"),
        ("12.6", "x86_64 Kernel Module  570.86.15 ", "check whether CUDA_VISIBLE_DEVICES"),
        ("12.6", "x86_64 Kernel Module  470.10 ", "update the driver to 525 or later"),
        ("13.0", "unheard of ", f"update the driver to {DRIVER} or later"),
    ],
)
def test_a_gpu_that_torch_does_not_find(cuda: str, module: str, remedy: str) -> None:
    check = doctor.driver_check("torch 2", cuda, f"NVRM version: NVIDIA UNIX {module} Thu May  1 2026\nGCC\n")
    assert check.state == "problem"
    assert check.remedy.startswith(remedy)
    assert module.strip() in check.found


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "little.yaml"
    path.write_text("sweep: little\nalgorithms: [sac]\ntasks: [hopper]\nseeds: 0-1\n")
    assert doctor.file_check(path) == ("little.yaml", "ok", "2 trials", "")
    path.write_text("sweep: little\nalgorithms: [sax]\ntasks: [hopper]\nseeds: 0-1\n")
    assert "Did you mean 'sac'?" in doctor.file_check(path).found
    root = Path(__file__).resolve().parents[3]
    assert doctor.file_check(root / "cluster" / "kuberay" / "raycluster.yaml").state == "ok"
    assert doctor.file_check(tmp_path / "none.yaml").state == "problem"


def test_nodes() -> None:
    def states(*nodes: dict[str, object], commit: str = "a" * 40) -> list[str]:
        return [check.state for check in doctor.node_checks(nodes, "/srv", "0.1.0", commit)]

    assert states(NODE) == ["ok", "ok", "ok"]
    assert states({**NODE, "version": None, "error": "ModuleNotFoundError"}) == ["problem", "ok", "ok"]
    assert states({**NODE, "version": "0.2.0"}) == ["problem", "ok", "ok"]
    assert states(NODE, commit="b" * 40) == ["note", "ok", "ok"]
    assert states(NODE, {**NODE, "sees": False}) == ["ok", "ok", "problem", "ok"]
    assert states(NODE, {**NODE, "ahead_s": -3.0}) == ["ok", "ok", "ok", "note"]


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "local_checks", lambda out: iter([doctor.python_check(sys.version_info[:3])]))
    assert run("doctor") == 0
    assert run("doctor", "--address", "http://127.0.0.1:9") == 2
    printed = capsys.readouterr()
    assert "problem cluster         Nothing responds at http://127.0.0.1:9" in printed.out
    assert printed.err.strip() == "Error: 1 problem."
