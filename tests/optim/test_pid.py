"""Test the PID multiplier: steps by hand, units, bounds, and recovery from a changed process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.errors import SettingsError
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.optim.pid import Multiplier, MultiplierSettings
from rllib_hpo.optim.steps import Steps
from rllib_hpo.settings import parse_settings

STEPS = Steps({})


def _multiplier(literal: bool = False, **values: Any) -> Multiplier:
    return Multiplier(MultiplierSettings(**values), target=0.1, literal=literal).double()


def _after(multiplier: Multiplier, distances: list[float]) -> list[float]:
    """Return kappa after each distance."""
    found = []
    for distance in distances:
        multiplier.control(STEPS, torch.tensor(distance, dtype=torch.float64))
        found.append(multiplier.kappa.item())
    return found


def test_the_rule_is_followed_by_hand() -> None:
    """D / target of 3, 1, 0 and 9: errors 2, 0, -1 and, clipped, 3; K_P 0.5, K_I 0.05, K_D 0.25, from kappa 2."""
    multiplier = _multiplier(derivative_gain=0.25)
    found = _after(multiplier, [0.3, 0.1, 0.0, 0.9])
    integrals = [2.1, 2.1, 2.05, 2.2]
    expected = [
        0.5 * 2 + integrals[0] + 0.25 * 2,
        0.5 * 0 + integrals[1] + 0.25 * (0 - 2),
        0.5 * -1 + integrals[2] + 0.25 * (-1 - 0),
        0.5 * 3 + integrals[3] + 0.25 * (3 - -1),
    ]
    assert found == pytest.approx(expected)
    assert multiplier.integral.item() == pytest.approx(2.2)
    assert multiplier.error.item() == pytest.approx(3)


def test_the_papers_rule_is_followed_by_hand() -> None:
    """Delta of 0.3, 0 and -0.1 in absolute units; I starts where beta is `initial_kappa`; beta is not negative."""
    multiplier = _multiplier(literal=True, derivative_gain=0.25)
    found = _after(multiplier, [0.4, 0.1, 0.0])
    expected = [
        0.5 * 0.3 + 0.05 * 40.3 + 0.25 * 0.3,
        0.05 * 40.3 + 0.25 * -0.3,
        0.5 * -0.1 + 0.05 * 40.2 + 0.25 * -0.1,
    ]
    assert found == pytest.approx(expected)
    assert _after(_multiplier(literal=True, initial_kappa=0.0, min_kappa=0.0), [0.0]) == [0]


def test_kappa_and_its_integral_are_bounded() -> None:
    assert min(_after(_multiplier(), [0.0] * 100)) == 0.5
    multiplier = _multiplier(max_kappa=3.0)
    assert max(_after(multiplier, [1e6] * 100)) == pytest.approx(0.5 * 3 + 3)
    assert _after(multiplier, [0.0] * 25)[-1] < 2, "an integral that wound up would hold it up for longer"


def test_beta_has_the_unit_of_the_force() -> None:
    """S starts from the first norm and then changes by a hundredth; a flat value counts as a force of 1."""
    multiplier = _multiplier()
    assert multiplier.beta().item() == pytest.approx(2)
    for norm, scale in ((8.0, 8.0), (4.0, 7.96), (7.96, 7.96)):
        multiplier.store_scale(STEPS, multiplier.next_scale(torch.tensor(norm, dtype=torch.float64)))
        assert multiplier.scale.item() == pytest.approx(scale)
        assert multiplier.beta().item() == pytest.approx(2 * scale)


def test_a_fixed_beta_follows_nothing() -> None:
    multiplier = _multiplier(multiplier="fixed", beta=0.7)
    _after(multiplier, [5.0, 0.0])
    multiplier.store_scale(STEPS, torch.tensor(3.0, dtype=torch.float64))
    assert multiplier.beta().item() == pytest.approx(0.7)


@pytest.mark.parametrize("gain", [0.1, 2.0])
def test_it_finds_its_way_back_after_a_step_change(gain: float) -> None:
    """The process has the distance gain / kappa, and the gain changes tenfold: D returns to the target."""
    multiplier = _multiplier(min_kappa=0.01)
    for now in (gain, 0.1 * gain, gain):
        distance = torch.zeros((), dtype=torch.float64)
        for _ in range(2_500):
            distance = 0.9 * distance + 0.1 * now / multiplier.kappa
            multiplier.control(STEPS, distance)
        assert distance.item() == pytest.approx(0.1, rel=1e-3)
        assert multiplier.kappa.item() == pytest.approx(now / 0.1, rel=1e-3)


def test_nothing_is_written_after_a_loss_that_is_not_finite() -> None:
    guard = DeviceGuard(torch.device("cpu"))
    steps, multiplier = Steps({}, guard=guard), _multiplier()
    before: dict[str, Tensor] = {name: value.clone() for name, value in multiplier.state_dict().items()}
    guard.begin("update")
    guard.check(torch.tensor(float("nan")), "policy loss")
    multiplier.control(steps, torch.tensor(0.5, dtype=torch.float64))
    multiplier.store_scale(steps, torch.tensor(2.0, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in multiplier.state_dict().items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_distance": 0.0}, "target_distance=0.0 must be greater than 0"),
        ({"integral_gain": -1.0}, "integral_gain=-1.0 must be greater than or equal to 0"),
        ({"derivative_gain": float("nan")}, "derivative_gain=nan must be"),
        ({"multiplier": "none"}, "multiplier='none' must be 'pid' or 'fixed'"),
        ({"min_kappa": 200.0}, "min_kappa=200.0 must be at most max_kappa=100.0"),
    ],
)
def test_settings_are_validated(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(MultiplierSettings, values)


def test_settings_of_the_other_rule_are_named() -> None:
    assert MultiplierSettings().notices() == []
    assert MultiplierSettings(beta=1.0).notices() == ["beta has no effect with multiplier='pid'."]
    (notice,) = MultiplierSettings(multiplier="fixed", beta=1.0, integral_gain=0.1).notices()
    assert notice == "integral_gain has no effect with multiplier='fixed'."
