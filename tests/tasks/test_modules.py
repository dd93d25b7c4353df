"""Test importing modules that users name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_hpo.errors import SettingsError, UnknownNameError, UserError
from rllib_hpo.tasks import find_task, import_modules, make_env
from rllib_hpo.tasks.modules import load_module


@pytest.mark.parametrize("name", [".x", "", "a..b", "x.", "a b", "../x"])
def test_names_of_no_module(name: str) -> None:
    with pytest.raises(ImportError, match="is not a module name"):
        load_module(name)
    with pytest.raises(UserError, match=r"^--import "):
        import_modules([name])


def test_a_relative_name_in_an_id_and_in_a_wrapper() -> None:
    with pytest.raises(UnknownNameError, match=r"Cannot import '\.x'"):
        find_task(".x:Hopper-v4")
    with pytest.raises(SettingsError, match=r"'\.x:Y' cannot be imported"):
        make_env("Pendulum-v1", wrappers=[".x:Y"])


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit(3)", "x = ("])
def test_what_a_module_raises_is_said(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_when_imported.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="--import raises_when_imported: it raised "):
        import_modules(["raises_when_imported"])


@pytest.mark.parametrize("value", ["a", 0, -2, 1.5, True, [3]])
def test_max_episode_steps_is_a_number_of_steps(value: object) -> None:
    with pytest.raises(SettingsError, match="env_config: max_episode_steps="):
        make_env("Pendulum-v1", max_episode_steps=value)


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("Pendulum-v1", {"nothing": 1}),
        ("Hopper-v4", {"xml_file": "/no/such.xml"}),
        ("Pendulum-v1", {"render_mode": 3}),
    ],
)
def test_what_an_environment_does_not_take_is_a_sentence(env: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"Environment '{env}' could not be made: "):
        make_env(env, **kwargs)


@pytest.mark.parametrize("name", ["env_id", "id", "training"])
def test_arguments_that_this_package_sets_are_refused(name: str) -> None:
    from rllib_hpo.experiments.config.run_config import resolve

    with pytest.raises(SettingsError, match=f"env_config: '{name}' is set by this package"):
        resolve({"env_config": {name: 1}})


def test_a_wrapper_that_misses_a_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text(
        "import gymnasium\nclass W(gymnasium.Wrapper):\n    def __init__(self, env):\n        import no_such_package\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="'needs_more:W' does not fit the environment: No module named"):
        make_env("Pendulum-v1", wrappers=["needs_more:W"])
