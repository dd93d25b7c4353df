"""Test the gap against closed forms, and that it is measured of every soft algorithm and refused of others."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.analysis.amortization_gap import (
    Draws,
    Stage,
    amortization_gap,
    check_subject,
    compare,
    energy_distance,
)
from rllib_hpo.analysis.annealed_smc import annealed_smc
from rllib_hpo.analysis.gap_files import visited_states
from rllib_hpo.analysis.gap_tables import (
    NUMBERS,
    gap_figure,
    gap_over_training_figure,
    gap_table,
    lines_of,
    read_gap,
)
from rllib_hpo.cli import main
from rllib_hpo.deployment import DeployedPolicy, load_policy_file, write_policy
from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.experiments.runs.zoo import ROWS as ROWS_OF_ZOO
from rllib_hpo.samplers.base import draw_noise
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.settings import SACHPOSettings
from rllib_hpo.streams import TorchStreams, torch_generator
from tests.learning.options import OTHERS, SETTINGS

ROOT = Path(__file__).resolve().parents[2]
STD, MEAN, ALPHA = 0.1, 0.2, 0.5
DRAWS = 4_000


def density(action: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p, up to log Z, of a Gaussian that is narrow enough for the walls not to matter."""
    off = (action - MEAN) / STD
    return -0.5 * off.square().sum(2), -off / STD


def gaussian_draws(mean: float, std: float, dim: int = 2) -> Draws:
    """Draw from a Gaussian, with its density."""
    noise = torch.randn(1, DRAWS, dim, generator=torch_generator(5), dtype=torch.float64)
    log_prob = (-0.5 * noise.square() - math.log(std * math.sqrt(2 * math.pi))).sum(2)
    return Draws(Stage("", None), mean + std * noise, log_prob, is_density=True)


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (MEAN, 0.2), (0.3, 0.05)])
def test_kl_and_distance_of_gaussians_are_the_closed_forms(mean: float, std: float) -> None:
    """The distance is that of two references for a policy equal to p, and more for another."""
    reference = annealed_smc(density, 1, 2, torch_generator(3), num_particles=DRAWS, dtype=torch.float64)
    found = compare(gaussian_draws(mean, std), density, reference, ALPHA)
    ratio = std / STD
    kl = 2 * (-math.log(ratio) + 0.5 * (ratio**2 + ((mean - MEAN) / STD) ** 2 - 1))
    assert float(found.kl) == pytest.approx(kl, abs=0.05)
    assert float(found.value_lost) == pytest.approx(ALPHA * kl, abs=0.03)
    other = annealed_smc(density, 1, 2, torch_generator(4), num_particles=DRAWS, dtype=torch.float64)
    floor = float(energy_distance(reference.actions, other.actions))
    assert (float(found.distance) > 3 * floor + 0.05) == (kl > 0)


def test_the_energy_distance_of_two_points_is_that_of_their_distance() -> None:
    """Of samples at x and at y it is sqrt(2 |x - y|)."""
    first, second = torch.zeros(1, 5, 2), torch.full((1, 7, 2), 0.5)
    assert float(energy_distance(first, second)) == pytest.approx(math.sqrt(2 * math.sqrt(0.5)), rel=1e-6)
    assert float(energy_distance(first, first)) == 0


def test_a_trajectory_ends_where_the_policy_acts() -> None:
    settings = SETTINGS["sac-hpo, heating"]
    actor = SamplerActor(5, 3, settings, seed=0)
    sampler = actor.sampler
    assert isinstance(sampler, HamiltonianSampler)
    obs = torch.randn(20, 5, generator=torch_generator(0))
    noise = draw_noise(sampler, 20, TorchStreams(0, "test"))
    begun, _ = sampler.initial_action(obs, noise)
    force = sampler.force(obs, actor.target_critics.condition(obs), actor.alpha)
    actions, momenta = sampler.trajectory(
        begun, sampler.initial_momentum(begun, noise, "train"), force, "train"
    )
    assert len(actions) == len(momenta) == settings.leapfrog_steps + 1
    expected = actor.sample(obs, noise, "train").action
    torch.testing.assert_close(actions[-1].clamp(-1, 1), expected)


@pytest.mark.parametrize("name", ["sac", "sac-nf", "sac-hpo", "soft-q", "sac-hpo-lagrangian"])
def test_every_soft_policy_is_measured(name: str) -> None:
    """A reference of an untrained critic, which is nearly flat, is easily sampled."""
    settings = {**SETTINGS, **OTHERS}[name]
    actor = check_subject(make_method(settings).make_actor(5, 3, seed=0), name)
    states = torch.randn(3, 5, generator=torch_generator(1))
    found = amortization_gap(actor, states, num_draws=200, chunk=2)
    assert found.trusted.all()
    assert (found.floor < 0.2).all()
    assert all(len(gap.distance) == 3 and torch.isfinite(gap.distance).all() for gap in found.gaps)
    stages = [gap.stage for gap in found.gaps]
    if isinstance(settings, SACHPOSettings) and name == "sac-hpo":
        assert {stage.steps for stage in stages} == {0, 1, 2}
        assert {stage.rounds for stage in stages} == {1, 2, 4, 8}
        assert {stage.momentum for stage in stages if not stage.noise} == {
            "train"
        }  # another would be the same
        accepted = next(g.acceptance for g in found.gaps if g.stage == Stage("train", 2))
        assert ((accepted >= 0) & (accepted <= 1)).all()
    has_density = name in ("sac", "sac-nf")
    assert torch.isfinite(found.gaps[0].kl).all() == (has_density or stages[0].steps == 0)


@pytest.mark.parametrize("name", ["td3", "mcmc-po", "sac-ae-hpo"])
def test_policies_without_such_a_density_are_refused(name: str) -> None:
    obs_dim = 9 * 15**2 if name == "sac-ae-hpo" else 5
    actor = make_method(find_settings(name)()).make_actor(obs_dim, 3, seed=0)
    with pytest.raises(SettingsError, match=f"amortization gap of '{name}' cannot be measured: its? "):
        check_subject(actor, name)


def test_states_are_those_of_the_policys_episodes() -> None:
    policy = load_policy_file(ROOT / "zoo" / "sac-pendulum.safetensors")
    states = visited_states(policy, 12, seed=3)
    assert states.shape == (12, 3)
    assert torch.allclose(states[:, :2].square().sum(1), torch.ones(12), atol=1e-5)  # cos and sin
    assert torch.equal(states, visited_states(policy, 12, seed=3))
    assert len(states.unique(dim=0)) == 12


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `rllib-hpo WORDS` in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["rllib-hpo", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_writes_rows_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = [str(ROOT / "zoo" / f"{name}-pendulum.safetensors") for name in ("sac", "sac-hpo")]
    gap = tmp_path / "gap"
    assert run(monkeypatch, "gap", *zoo, "--states", "2", "--draws", "100", "--out", str(gap)) == 0
    assert "the reference is trusted in" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "gap" / "gap.parquet").to_pylist()
    assert {row["algorithm"] for row in rows} == {"sac", "sac-hpo"}
    assert {row["state"] for row in rows} == {0, 1}
    assert all(row["git_commit"] for row in rows)
    assert (tmp_path / "gap" / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert "before the leapfrog" in (tmp_path / "gap" / "gap.md").read_text()
    rows_of_returns = str(ROOT / "zoo" / ROWS_OF_ZOO)
    report = tmp_path / "report"
    assert run(monkeypatch, "report", rows_of_returns, "--gap", str(gap), "--out", str(report)) == 0
    assert "Amortization gap, stage by stage" in (report / "index.html").read_text()
    assert (report / "tables" / "gap.csv").read_text() == (gap / "gap.csv").read_text()
    assert run(monkeypatch, "report", rows_of_returns, "--gap", str(tmp_path), "--out", str(report)) == 2


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"policy": ["sac"]}), tmp_path / "gap.parquet")
    with pytest.raises(UserError, match="is not of `rllib-hpo gap`: it lacks acceptance, algorithm"):
        read_gap(tmp_path)
    (tmp_path / "gap.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_gap(tmp_path)


def test_many_policies_make_a_figure_of_bounded_size() -> None:
    """A sweep keeps hundreds of policies; a picture of all would be too large to write."""
    row = {
        "policy": "",
        "algorithm": "sac",
        "task": "t",
        "env_steps": 0,
        "leapfrog_steps": None,
        "num_draws": 100,
    }
    numbers = dict.fromkeys((*NUMBERS, "floor"), 0.5)
    stage = Stage("", None)._asdict()
    rows = [
        {**row, **numbers, **stage, "trusted": True, "policy": f"sac {k}", "env_steps": k} for k in range(300)
    ]
    figure = gap_figure(pa.Table.from_pylist(rows))
    assert [axis.get_title() for axis in figure.axes] == [f"sac {k}" for k in range(288, 300)]
    assert len(gap_table(pa.Table.from_pylist(rows)).rows) == 600


def test_policies_that_a_run_kept_make_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "run" / "policies"
    kept.mkdir(parents=True)
    assert run(monkeypatch, "gap", "--kept", str(tmp_path / "run"), "--out", str(tmp_path / "gap")) == 2
    policy = load_policy_file(ROOT / "zoo" / "sac-hpo-pendulum.safetensors")
    for steps in (5_000, 10_000):
        stored = DeployedPolicy(policy.actor, policy.metadata.model_copy(update={"env_steps": steps}))
        write_policy(stored, "safetensors", kept / f"step-{steps:010}.safetensors")
    words = (
        "--kept",
        str(tmp_path / "run"),
        "--states",
        "2",
        "--draws",
        "100",
        "--out",
        str(tmp_path / "gap"),
    )
    assert run(monkeypatch, "gap", *words) == 0
    rows = read_gap(tmp_path / "gap")
    assert {line.about["env_steps"] for line in lines_of(rows)} == {5_000, 10_000}
    figure = gap_over_training_figure(rows)
    assert figure is not None
    (axis,) = figure.axes
    named = {line.get_label(): line.get_xdata().tolist() for line in axis.get_lines()}
    assert named == {f"sac-hpo {stage} the leapfrog": [5_000, 10_000] for stage in ("before", "after")}
