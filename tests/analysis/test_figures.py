"""Test what figures over all tasks draw and label."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_hpo.analysis.figures import (
    displacement_figure,
    improvement_figure,
    interval_figure,
    profile_figure,
    to_bytes,
)
from rllib_hpo.analysis.runs import runs_of, series_of
from rllib_hpo.analysis.statistics import interquartile_mean, performance_profile
from rllib_hpo.analysis.tables import final, normalised, scores_of
from tests.analysis.test_tables import grid, rng


def scaled() -> tuple[object, object]:
    runs = runs_of(grid())
    finals = scores_of(runs, final)
    return normalised(finals, finals), series_of(runs)


def words(figure: object) -> str:
    return to_bytes(figure, "svg").decode()  # matplotlib names its texts in comments


@pytest.mark.parametrize("make", [interval_figure, profile_figure, improvement_figure])
def test_seeds_and_environments_stand_in_each(make: object) -> None:
    text = words(make(*scaled(), rng()))
    for part in ("3 seeds", "Hopper-v4", "Ant-v4"):
        assert part in text


def test_points_are_the_statistics() -> None:
    scores, series = scaled()
    axis = interval_figure(scores, series, rng()).axes[0]
    points = [line.get_xdata()[0] for line in axis.get_lines() if line.get_marker() == "o"]
    expected = [float(interquartile_mean(scores.matrix(label))) for label in ("SAC-HPO", "SAC")]
    assert points == pytest.approx(expected)


def test_profiles_fall_from_one_to_nothing() -> None:
    scores, series = scaled()
    (axis,) = profile_figure(scores, series, rng()).axes
    for line, one in zip(axis.get_lines(), series, strict=True):
        x, y = line.get_data()
        np.testing.assert_allclose(y, performance_profile(scores.matrix(one.label), x))
        assert (y[0], y[-1]) == (1.0, 0.0)
        assert line.get_color() == one.color


def test_drift_and_noise_are_drawn_where_there_are_any() -> None:
    figure = displacement_figure(runs_of(grid()))
    assert figure is not None
    for axis in figure.axes:
        drift, noise = axis.get_lines()
        assert np.nanmean(drift.get_ydata()) == pytest.approx(0.1)
        assert np.nanmean(noise.get_ydata()) == pytest.approx(0.3)
    assert "Hopper-v4: 3" in words(figure)
    assert displacement_figure([run for run in runs_of(grid()) if run.label == "SAC"]) is None
