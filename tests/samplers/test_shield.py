"""Test Algorithm 3 for many states at once against its transcription for one, and on critics with known results."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rllib_hpo.samplers.leapfrog import LeapfrogState, leapfrog_step
from rllib_hpo.samplers.shield import ShieldOptions, lyapunov_bound, shielded
from tests.reference.shield import algorithm_3

ROWS, STEPS, DIM, EPS, GAMMA = 64, 6, 3, 0.3, 0.9


def _drawn(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(ROWS, DIM).tanh(), normal(ROWS, DIM), 0.5 * normal(ROWS, STEPS, DIM), normal(ROWS, DIM)


def _step(force: Callable[[Tensor], Tensor]) -> Callable[[LeapfrogState], LeapfrogState]:
    return lambda state: leapfrog_step(state, force, step_size=EPS)


@pytest.mark.parametrize(
    "options",
    [
        ShieldOptions(*chosen)
        for chosen in itertools.product((False, True), ("add", "replace", "partial"), ("last", "safest"))
    ],
    ids=str,
)
def test_equals_a_literal_transcription(options: ShieldOptions) -> None:
    """They agree to 1e-12, where states accept at once, later and never, within budget and over it."""
    action, momentum, noise, reference = _drawn(0)
    reference = reference.tanh()
    weight = torch.linspace(-2, 2, DIM, dtype=torch.float64)
    cost_at_start = torch.linspace(-30, 60, ROWS, dtype=torch.float64)
    limit = 10.0

    def force(a: Tensor) -> Tensor:
        return torch.sin(2 * a) + 0.3

    def cost(a: Tensor) -> Tensor:
        return (weight * a + 0.5 * a**2).sum(-1)

    bound = lyapunov_bound(cost(reference), cost_at_start, limit, GAMMA)
    start = LeapfrogState(action, momentum, force(action))
    found = shielded(start, noise, _step(force), cost, bound, reference, options)
    for row in range(ROWS):
        expected, passed, steps = algorithm_3(
            action[row],
            momentum[row],
            noise[row],
            force,
            cost,
            reference[row],
            float(cost_at_start[row]),
            step_size=EPS,
            limit=limit,
            gamma=GAMMA,
            **options._asdict(),
        )
        assert (found.action[row] - expected).abs().max() < 1e-12
        assert (bool(found.accepted[row]), int(found.num_steps[row])) == (passed, steps)
    taken = set(found.num_steps[found.accepted > 0].tolist())
    assert len(taken) >= 3
    assert 0 < found.accepted.mean() < 1


def _glide(bounds: Tensor, options: ShieldOptions = ShieldOptions()) -> tuple[Tensor, Tensor, Tensor]:  # noqa: B008
    """Define no force, momentum 1 in one dimension and Q_C(s, a) = 1 - a: step k leads to a = -1 + 0.3 k."""
    rows = len(bounds)
    start = LeapfrogState(-torch.ones(rows, 1), torch.ones(rows, 1), torch.zeros(rows, 1))
    reference = torch.full((rows, 1), -0.5)
    noise = torch.zeros(rows, STEPS, 1)
    found = shielded(start, noise, _step(torch.zeros_like), lambda a: 1 - a[:, 0], bounds, reference, options)
    return found.action[:, 0], found.accepted, found.num_steps


def test_the_first_action_that_passes_is_taken() -> None:
    """It costs 2 - 0.3 k after k steps."""
    action, accepted, num_steps = _glide(torch.tensor([9.0, 1.75, 1.45, 0.85, 0.15]))
    assert num_steps.tolist() == [1, 1, 2, 4, STEPS]
    assert accepted.tolist() == [1, 1, 1, 1, 0]
    torch.testing.assert_close(action, torch.tensor([-0.7, -0.7, -0.4, 0.2, 0.8]))


def test_what_acts_where_nothing_passes() -> None:
    """It is the last action, or the one of least cost: here the last, and the reference where costs rise."""
    last, *_ = _glide(torch.tensor([-1.0]))
    safest, *_ = _glide(torch.tensor([-1.0]), ShieldOptions(fallback="safest"))
    assert last.item() == safest.item() == pytest.approx(0.8)
    start = LeapfrogState(torch.ones(1, 1), -torch.ones(1, 1), torch.zeros(1, 1))
    found = shielded(
        start,
        torch.zeros(1, 3, 1),
        _step(torch.zeros_like),
        lambda a: 1 - a[:, 0],
        torch.tensor([-1.0]),
        torch.tensor([[1.0]]),
        ShieldOptions(fallback="safest"),
    )
    assert (found.action.item(), found.accepted.item(), found.num_steps.item()) == (1.0, 0.0, 3.0)


def test_over_budget_only_safer_actions_than_the_references_pass() -> None:
    """The bound is tighter by exactly (1 - gamma) times the excess."""
    bound = lyapunov_bound(torch.tensor(5.0), torch.tensor(30.0), limit=10.0, gamma=0.99)
    assert bound.item() == pytest.approx(5.0 - 0.2)
    assert lyapunov_bound(torch.tensor(5.0), torch.tensor(0.0), 10.0, 0.99).item() == pytest.approx(5.1)


def test_the_first_action_may_pass_if_asked() -> None:
    _, accepted, num_steps = _glide(torch.tensor([2.0, 1.99]), ShieldOptions(test_initial=True))
    assert (accepted.tolist(), num_steps.tolist()) == ([1, 1], [0, 1])
