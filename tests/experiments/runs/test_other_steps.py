"""Test evaluations with other numbers of leapfrog steps than a policy was trained with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rllib_hpo.cli import main
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.experiments.storage.export import export_policy
from tests.rllib.tiny import running, tiny_config, train_to

ZOO = Path(__file__).resolve().parents[3] / "zoo"


def test_a_checkpoint_and_its_export_play_alike_with_any_number_of_steps(tmp_path: Path) -> None:
    with running(tiny_config("sac-hpo", "Pendulum-v1", leapfrog_steps=2, step_size=0.5)) as built:
        train_to(built, 80)
        checkpoint = Path(built.save_to_path(tmp_path / "checkpoint"))
    exported = tmp_path / "policy.safetensors"
    export_policy(checkpoint, "safetensors", exported)
    returns = {}
    for steps in (None, 0, 2, 5):
        of_checkpoint, manifest = evaluate_checkpoint(checkpoint, 2, seed=3, leapfrog_steps=steps)
        of_export, told = evaluate_checkpoint(exported, 2, seed=3, leapfrog_steps=steps)
        assert of_checkpoint.returns == of_export.returns
        assert (manifest["algorithm"], manifest["env_steps"]) == (told["algorithm"], told["env_steps"])
        returns[steps] = of_checkpoint.returns
    assert returns[None] == returns[2]
    assert returns[0] != returns[2] != returns[5]


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_policies_without_steps_say_so(name: str) -> None:
    with pytest.raises(SettingsError, match=f"policy of '{name}' take no leapfrog steps"):
        evaluate_checkpoint(ZOO / f"{name}-pendulum.safetensors", 1, leapfrog_steps=1)


def test_a_shield_keeps_its_steps(tmp_path: Path) -> None:
    with running(tiny_config("sac-hpo-lagrangian", "Pendulum-v1")) as built:
        train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path / "checkpoint"))
    with pytest.raises(SettingsError, match="the shield of this policy of 'sac-hpo-lagrangian' decides"):
        evaluate_checkpoint(checkpoint, 1, leapfrog_steps=1)


def test_films_are_made_without_other_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(ZOO / "sac-hpo-pendulum.safetensors"),
        "--leapfrog-steps",
        "1",
        "--video",
        "f.gif",
    ]
    monkeypatch.setattr(sys, "argv", ["rllib-hpo", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("listed", ["x", "-1", "1,,2", "10001"])
def test_a_list_that_makes_no_sense_is_one_sentence(
    listed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(ZOO / "sac-hpo-pendulum.safetensors")
    monkeypatch.setattr(sys, "argv", ["rllib-hpo", "evaluate", policy, f"--leapfrog-steps={listed}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "must be numbers from 0 to 10,000" in " ".join(capsys.readouterr().err.split())
