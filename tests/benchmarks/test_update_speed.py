from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import update_speed
from benchmarks.update_speed import Contestant, Product, algorithms, needed_products
from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.kernels import products
from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.samplers.base import draw_noise
from rllib_hpo.settings import SACSettings
from rllib_hpo.streams import TorchStreams
from tests.learning.engine import make_optimizers, update


def test_products_of_sac_are_those_of_its_networks():
    """The products are counted by hand, for B = 256 rows, 11 observations, 3 actions and 256 units."""
    units = 256
    policy = 11 * units + units * units + units * 6
    inner = units * units + units * 6  # what the policy's gradient goes back through
    critic = 14 * units + units * units + units
    critic_inner = units * units + units
    to_action = critic_inner + 3 * units
    rows = 256
    expected = 2 * rows * (2 * policy + policy + inner + 6 * critic + 2 * (critic + critic_inner) + to_action)
    # 3 twin passes forward are 6 critics, one twin pass backward 2 of weights and 2 of inner values.
    assert sum(product.operations for product in needed_products(SACSettings(), 11, 3)) == expected


@pytest.mark.parametrize("name", ["sac", "sac-hpo, K = 2"])
def test_no_update_makes_do_with_fewer_operations_than_its_floor(name, monkeypatch):
    """torch counts those of a real update: the floor is below it, and most of it."""
    monkeypatch.setattr(products, "HAS_ONEDNN", False)  # whose products torch does not count
    settings = algorithms()[name]
    model = SoftActorCriticModel(11, 3, settings, seed=0)
    layout, streams = RowLayout(11, 3), TorchStreams(0, "test")
    batch = layout.unpack(torch.randn(256, layout.width, generator=streams["rows"]))
    noise = draw_noise(model.sampler, 512, streams)
    with FlopCounterMode(display=False) as counter:
        update(model, make_optimizers(model, settings), batch, noise, settings)
    floor = sum(product.operations for product in needed_products(settings, 11, 3))
    assert 0.9 * counter.get_total_flops() < floor < 1.1 * counter.get_total_flops()


def test_every_step_of_a_chain_adds_the_same_products():
    counts = [
        sum(p.operations for p in needed_products(algorithms()[f"sac-hpo, K = {k}"], 11, 3))
        for k in (1, 2, 3)
    ]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_ratios_and_what_is_missed():
    sac, hpo = (Contestant(name, "Humanoid", "cpu", "eager") for name in ("sac", "sac-hpo, K = 2"))
    floors = {
        Contestant(entrant.algorithm, "Humanoid", "cpu", "floor"): [1.0, 1.0, 1.0] for entrant in (sac, hpo)
    }
    rows = update_speed.summarise({sac: [1.5, 1.6, 1.7], hpo: [3.2, 3.4, 3.6], **floors})
    assert [row["algorithm"] for row in rows] == ["sac", "sac-hpo, K = 2"]
    assert rows[0]["times_floor"]["value"] == 1.6
    assert "times_sac" not in rows[0]
    assert rows[1]["times_sac"]["value"] == pytest.approx(3.4 / 1.6)
    assert rows[1]["updates_per_second"] == pytest.approx(1e3 / 3.4)
    assert update_speed.misses(rows) == [
        "sac-hpo, K = 2, Humanoid: 2.12 times sac, more than 2",
        "sac-hpo, K = 2, Humanoid: 3.40 times floor, more than 2",
    ]


def test_a_gpu_is_measured_by_graph_and_eagerly():
    modes = {(entrant.device, entrant.mode) for entrant in update_speed.contestants(["cpu", "cuda"])}
    assert modes == {("cpu", "floor"), ("cpu", "eager"), *(("cuda", m) for m in ("floor", "eager", "graph"))}


def test_a_cpu_is_measured_compiled_where_that_is_asked_for():
    modes = {entrant.mode for entrant in update_speed.contestants(["cpu"], compiled=True)}
    assert modes == {"floor", "eager", "compiled"}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_compiled_updates_are_updates():
    """They nearly equal eager updates, so the timed code does the work."""
    found = []
    for mode in ("eager", "compiled"):
        run = update_speed.make_updates(Contestant("sac-nf", "Hopper", "cpu", mode))
        run(3)
        trainer = run.__self__.trainer
        found.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()
    torch.compiler.reset()


def test_floors_multiply_what_they_are_told():
    """The fastest way to multiply returns the product's shape."""
    assert update_speed._fastest(Product(300, 200, 100), "cpu")().shape == (300, 100)


def test_it_measures_and_writes_the_rounds(tmp_path, capsys, monkeypatch):
    out = tmp_path / "speed.json"
    monkeypatch.setattr(update_speed, "SIZES", {"small": (4, 2)})

    update_speed.main(["--rounds", "2", "--chunk", "1", "--warm-up", "3", "--out", str(out)])

    updates = [row for row in json.loads(out.read_text())["updates"] if row["device"] == "cpu"]
    assert [row["algorithm"] for row in updates] == list(algorithms())
    assert all(len(row["rounds_ms"]) == len(row["floor_rounds_ms"]) == 2 for row in updates)
    assert "| sac-hpo, K = 2, small, cpu, eager |" in capsys.readouterr().out
