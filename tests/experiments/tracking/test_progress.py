"""Test what a line about an evaluation says of success and costs."""

from __future__ import annotations

import pytest

from rllib_hpo.experiments.tracking.progress import success_and_cost


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"episode_return_mean": 1.0}, ""),
        ({"success_rate": None, "cost_mean": None, "cost_discounted_mean": None, "cost_limit": None}, ""),
        ({"success_rate": 0.25}, "   success 25%"),
        (
            {"cost_mean": 12.34, "cost_discounted_mean": 5.0, "cost_limit": 25.0},
            "   cost 12.3, discounted 5.0, limit 25",
        ),
        (
            {"success_rate": 1.0, "cost_mean": 0.0, "cost_discounted_mean": 0.0, "cost_limit": 0.5},
            "   success 100%   cost 0.0, discounted 0.0, limit 0.5",
        ),
    ],
)
def test_a_line_ends_with_success_and_costs_where_there_are_any(
    numbers: dict[str, float | None], text: str
) -> None:
    assert success_and_cost(numbers) == text
