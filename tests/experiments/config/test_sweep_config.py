"""Test sweep files: their expansion, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.config.sweep_config import parse_seeds, read_sweep
from rllib_hpo.experiments.runs.files import RunFiles, to_rllib
from rllib_hpo.experiments.sweeps.resources import resources

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "tune_configs").glob("*.yaml"))

GOOD = """\
sweep: test
algorithms: [sac, sac-hpo]
tasks: [hopper, Pendulum-v1]
seeds: 0-1
settings:
  warmup_steps: 100
  lr: 3e-4
  leapfrog_units: 8
variants:
  plain: {}
  k-1:
    algorithms: [sac-hpo]
    settings: {leapfrog_steps: 1}
overrides:
  - task: Pendulum-v1
    settings: {steps: 500}
  - {task: Pendulum-v1, algorithm: sac-hpo, variant: k-1, settings: {step_size: 0.05}}
"""


def written(text: str, tmp_path: Path) -> Path:
    """Write a sweep file."""
    path = tmp_path / "test.yaml"
    path.write_text(text)
    return path


def test_a_file_expands_to_its_grid(tmp_path: Path) -> None:
    sweep = read_sweep(written(GOOD, tmp_path))
    names = [trial.name for trial in sweep.trials]
    assert len(names) == len(set(names)) == 2 * 2 * 3
    assert names[:3] == ["sac-plain-hopper-seed0", "sac-hpo-plain-hopper-seed0", "sac-hpo-k-1-hopper-seed0"]
    trials = {trial.name: trial.config for trial in sweep.trials}
    hopper, pendulum = trials["sac-hpo-k-1-hopper-seed1"], trials["sac-hpo-k-1-Pendulum-v1-seed1"]
    assert (hopper.run.seed, hopper.run.steps, pendulum.run.steps) == (1, 1_000_000, 500)
    values = hopper.values()
    assert (values["leapfrog_steps"], values["leapfrog_units"], values["warmup_steps"]) == (1, 8, 100)
    assert values["lr"] == 3e-4
    assert (values["step_size"], pendulum.values()["step_size"]) == (
        0.15,
        0.05,
    )  # Table I's, and the override
    assert trials["sac-hpo-plain-hopper-seed0"].values()["leapfrog_steps"] == 2  # Table I's
    assert "leapfrog_units" not in trials["sac-plain-hopper-seed0"].values()


def test_a_part_of_it(tmp_path: Path) -> None:
    path = written(GOOD, tmp_path)
    part = read_sweep(path).only(task="hopper", algorithm="sac-hpo")
    assert {trial.name for trial in part.trials} == {
        f"sac-hpo-{variant}-hopper-seed{seed}" for variant in ("plain", "k-1") for seed in (0, 1)
    }
    assert len(read_sweep(path, seeds="3,5-6").trials) == 3 * 2 * 3
    changed = read_sweep(path, changes={"steps": 77, "num_env_runners": 2})
    assert {(trial.config.run.steps, trial.config.run.num_env_runners) for trial in changed.trials} == {
        (77, 2)
    }
    with pytest.raises(
        SettingsError, match=r"task=hoper: the sweep has no such task\. Did you mean 'hopper'\?"
    ):
        read_sweep(path).only(task="hoper")
    with pytest.raises(SettingsError, match="'seed' must be algorithm, task or variant"):
        read_sweep(path).only(seed="0")
    with pytest.raises(SettingsError, match="No trial of the sweep matches every --only"):
        read_sweep(path).only(algorithm="sac", variant="k-1")


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2", [0, 1, 2]), ("3", [3]), ("5,0-1,1", [0, 1, 5]), (" 2 - 3 ", [2, 3])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text, "--seeds") == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1..3"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(SettingsError, match="must be numbers and ranges"):
        parse_seeds(text, "--seeds")


MISTAKES = {
    "unknown key": (
        "seeds: 0-1",
        "seds: 0-1",
        4,
        "'seds' is not a valid key here. Did you mean 'seeds'?",
    ),
    "unknown algorithm": ("[sac, sac-hpo]", "[sac, sac-hp]", 2, "Did you mean 'sac-hpo'?"),
    "unknown task": ("hopper,", "hoper,", 3, "Did you mean 'hopper'?"),
    "unknown setting": ("  warmup_steps", "  warmup_stes", 6, "Did you mean 'warmup_steps'?"),
    "unknown setting of a variant": (
        "{leapfrog_steps: 1}",
        "{leapfrog_step: 1}",
        13,
        "Did you mean 'leapfrog_steps'?",
    ),
    "setting of another algorithm": (
        "{leapfrog_steps: 1}",
        "{num_flows: 1}",
        13,
        "'num_flows' is not a setting",
    ),
    "impossible value": ("{leapfrog_steps: 1}", "{leapfrog_steps: -1}", 13, "leapfrog_steps=-1"),
    "impossible value for all": ("  lr: 3e-4", "  lr: 0", 7, "lr=0"),
    "wrong type": ("{steps: 500}", "{steps: many}", 16, "steps='many'"),
    "axis as a setting": ("{steps: 500}", "{seed: 500}", 16, "'seed' is an axis of the sweep"),
    "task the sweep lacks": ("- task: Pendulum-v1", "- task: ant", 15, "the sweep has no task 'ant'"),
    "variant the sweep lacks": ("variant: k-1,", "variant: k-2,", 17, "Did you mean 'k-1'?"),
    "unknown key of an override": ("- task: Pendulum", "- tsk: Pendulum", 15, "Did you mean 'task'?"),
    "key twice": ("  lr: 3e-4", "  warmup_steps: 3", 7, "the key 'warmup_steps' is repeated"),
    "no seeds": ("seeds: 0-1", "seeds: []", 4, "one or more"),
    "bad seeds": ("seeds: 0-1", "seeds: 1-0", 4, "must be numbers and ranges"),
    "no tasks": ("[hopper, Pendulum-v1]", "[]", 3, "tasks=[]"),
    "bad name": ("sweep: test", "sweep: a/b", 1, "sweep='a/b'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_line(mistake: str, tmp_path: Path) -> None:
    right, wrong, line, message = MISTAKES[mistake]
    assert right in GOOD
    path = written(GOOD.replace(right, wrong, 1), tmp_path)
    with pytest.raises(SettingsError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}, line {line}: "), caught.value
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- 1", "a: [", "\tx", ""])
def test_what_is_no_sweep_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test\.yaml"):
        read_sweep(written(text, tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(tmp_path / "nothing.yaml")


# --- those of the repository ---


def test_there_are_all_of_them() -> None:
    assert [path.stem for path in FILES] == [
        "ablation",
        "deterministic",
        "eight-tasks",
        "evidence",
        "first-version",
        "force-composition",
        "gate-size",
        "goals",
        "leapfrog-steps",
        "mcmc-po",
        "momentum-explore",
        "momentum-order",
        "momentum-train",
        "no-momentum",
        "objective-critic",
        "pixels-grid",
        "pixels",
        "policy-shape",
        "safe",
        "smoke",
        "soft-q-explore",
        "soft-q-finetune",
        "soft-q-multi-goal",
        "soft-q-pretrain",
        "tempering-and-penalty",
        "zoo",
    ]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_file_says_what_it_costs(path: Path) -> None:
    """Its head names the command, and the numbers of trials and steps."""
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    head = path.read_text().split("sweep:")[0]
    assert f"rllib-hpo sweep tune_configs/{path.name} --out runs/{path.stem}" in head
    steps = sum(trial.config.run.steps for trial in sweep.trials)
    amount = f"{steps / 1_000_000:,g} million" if steps >= 1_000_000 else f"{steps:,}"
    assert f"# Cost: {len(sweep.trials)} trials, {amount} environment steps." in head


def test_the_comparison_is_table_one() -> None:
    trials = read_sweep(ROOT / "tune_configs" / "eight-tasks.yaml").trials
    assert len(trials) == 120
    by_name = {trial.name: trial.config.values() for trial in trials}
    cheetah = by_name["sac-hpo-halfcheetah-seed4"]
    assert (cheetah["momentum_std_train"], cheetah["momentum_std_explore"]) == (1.0, 0.5)
    assert (cheetah["step_size"], cheetah["leapfrog_steps"], cheetah["leapfrog_units"]) == (0.2, 3, 32)
    assert by_name["sac-humanoid-pybullet-seed0"]["steps"] == 3_000_000


def settings_of(stem: str, *names: str) -> dict[str, tuple[Any, ...]]:
    """Return values of the named settings in the trials of seed 0, by the trial's name."""
    trials = read_sweep(ROOT / "tune_configs" / f"{stem}.yaml", seeds="0").trials
    return {trial.name: tuple(trial.config.values().get(name) for name in names) for trial in trials}


def test_the_ablation_has_sac_and_both_gaussians() -> None:
    """Table II of 2103.12020: its Gaussian policy is SAC's network, which has two layers."""
    trials = settings_of("ablation", "policy_layers", "explore_sampler", "train_sampler", "force_gate")
    assert trials["sac-ant-seed0"] == (2, None, None, None)
    assert trials["sac-hpo-proposed-ant-seed0"] == (1, "hamiltonian", "hamiltonian", "gated")
    assert trials["sac-hpo-baseline-2-ant-seed0"] == (1, "hamiltonian", "gaussian", "none")
    assert trials["sac-hpo-baseline-2-two-layers-ant-seed0"] == (2, "hamiltonian", "gaussian", "none")
    assert trials["sac-hpo-baseline-3-ant-seed0"] == (1, "gaussian", "hamiltonian", "gated")


def test_the_first_version_has_its_table_four() -> None:
    """2103.12020v1: layers l and K by task, always with tempering."""
    trials = settings_of("first-version", "policy_layers", "leapfrog_steps", "tempering")
    layers = {"hopper": 2, "ant": 1, "humanoid-pybullet": 1, "humanoid-flagrun-harder-pybullet": 2}
    for task, number in layers.items():
        for steps in (2, 3, 4):
            assert trials[f"sac-hpo-k-{steps}-{task}-seed0"] == (number, steps, True)


def test_one_arm_cools_and_the_others_heat_or_do_nothing() -> None:
    """Tempering multiplies the momentum by 1 / std in total."""
    trials = settings_of("tempering-and-penalty", "tempering", "momentum_std_train")
    for task, std in {"halfcheetah": 1.0, "hopper": 0.1, "ant": 0.1}.items():
        assert trials[f"sac-hpo-tempering-{task}-seed0"] == (True, std)
        assert trials[f"sac-hpo-cooling-{task}-seed0"] == (True, 1.5)
        assert trials[f"sac-hpo-warm-{task}-seed0"] == (False, 1.5)


def test_swapped_momenta_are_the_other_order_of_table_one() -> None:
    trials = settings_of("momentum-order", "momentum_std_train", "momentum_std_explore")
    for task in ("halfcheetah", "hopper"):
        assert trials[f"sac-hpo-swapped-{task}-seed0"] == trials[f"sac-hpo-proposed-{task}-seed0"][::-1]


def test_every_runner_of_a_trial_asks_for_a_processor() -> None:
    """Runners that evaluate beside training do too."""
    workers = {"num_env_runners": 2, "num_learners": 1, "evaluation_num_env_runners": 1}
    assert resources(resolve(workers)).bundles == [{"CPU": 1.0}] * (1 + 2 + 1 + 1)
    assert to_rllib(resolve(workers), RunFiles(Path("x"))).evaluation_num_env_runners == 1


def test_every_learner_asks_for_a_place_of_its_own() -> None:
    """With GPUs the first learner's is the trial's own; none has room for a runner as well."""
    learners = {"num_learners": 3, "num_env_runners": 2}
    assert resources(resolve(learners)).bundles == [{"CPU": 1.0}] * (1 + 3 + 2)
    with_gpus = resources(resolve(learners | {"num_gpus_per_learner": 1.0}))
    assert with_gpus.bundles == [*[{"CPU": 0.5, "GPU": 1.0}] * 3, *[{"CPU": 1.0}] * 2]
    assert with_gpus.head_bundle_is_empty


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_learners": -1}, "num_learners=-1 must be greater than or equal to 0"),
        ({"num_learners": 1.5}, "num_learners=1.5 must be a valid integer"),
        (
            {"num_learners": 2, "num_gpus_per_learner": 0.5},
            "num_gpus_per_learner=0.5 must be 0 or 1 with num_l",
        ),
        ({"num_learners": 8, "replay_capacity": 7}, "num_learners=8 must be at most replay_capacity=7: each"),
    ],
)
def test_numbers_of_learners_that_cannot_be(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(flags)


def test_a_fine_tuned_trial_begins_with_the_pretrained_one_of_its_seed() -> None:
    """It takes the networks, and keeps schedules that only soft Q-learning has; from scratch there is no origin."""
    pretrained = {
        trial.name for trial in read_sweep(ROOT / "tune_configs" / "soft-q-pretrain.yaml", seeds="3").trials
    }
    trials = read_sweep(ROOT / "tune_configs" / "soft-q-finetune.yaml", seeds="3").trials
    by_name = {trial.name: trial.config for trial in trials}
    for size, steps in (("small", 5_000), ("full", 200_000)):
        config = by_name[f"soft-q-{size}-quad-u-seed3"]
        assert Path(config.run.initialize_from or "").name in pretrained
        assert Path(config.run.initialize_from or "").is_absolute()
        values = config.values()
        assert values["warmup_policy"] == "policy"
        assert values["alpha"] == {"from": 0.1, "to": 0.001, "steps": steps}
        assert values["noise_set"] == {"from": 64, "to": 1, "steps": steps}
        assert Path(by_name[f"ddpg-{size}-quad-u-seed3"].run.initialize_from or "").name in pretrained
        assert by_name[f"ddpg-{size}-from-scratch-quad-u-seed3"].run.initialize_from is None
