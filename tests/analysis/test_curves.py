"""Test learning curves: the statistics by hand, and the text of the figure."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from matplotlib.image import imread

from rllib_hpo.analysis.curves import Curve, ema, learning_curve, learning_curve_figure, mean_over_seeds
from rllib_hpo.errors import StorageError, UserError
from rllib_hpo.results import SCHEMA
from tests.results.rows import make_row


def curve(*points: tuple[int, float]) -> Curve:
    steps, values = zip(*points, strict=True)
    return Curve(np.array(steps), np.array(values, dtype=np.float64))


def table(*runs: dict[str, Any], steps: range = range(0, 11_000, 1_000)) -> pa.Table:
    """Make rows of several runs; the return of each evaluation is its environment steps / 100 plus the seed."""
    rows = []
    for run in runs:
        columns: dict[str, Any] = {"seed": 0, **run}
        for step in columns.pop("steps", steps):
            value = step / 100 + columns["seed"]
            rows.append(make_row(**columns, env_steps=step, returns=(value - 1, value + 1)))
    return pa.concat_tables([row.to_arrow() for row in rows])


def legend(figured: pa.Table) -> list[str]:
    return [text.get_text() for text in learning_curve_figure(figured).legends[0].get_texts()]


def test_ema_by_hand() -> None:
    # a = 2 / (3 + 1): weights 1, 1/2, 1/4 from the newest back, divided by their sum
    expected = [4.0, (8 + 4 / 2) / 1.5, (1 + 8 / 2 + 4 / 4) / 1.75]
    np.testing.assert_allclose(ema([4.0, 8.0, 1.0], span=3), expected, rtol=1e-15)


def test_ema_is_that_of_pandas() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = pandas.Series(values).ewm(span=5).mean()
    np.testing.assert_allclose(ema(values), expected, rtol=1e-12)


def test_ema_of_a_constant_of_nothing_and_of_span_one() -> None:
    np.testing.assert_allclose(ema([3.0] * 7), 3.0, rtol=1e-15)
    assert ema([]).shape == (0,)
    values = np.array([1.0, -5.0, 2.0])
    np.testing.assert_array_equal(ema(values, span=1), values)
    assert values.tolist() == [1.0, -5.0, 2.0]
    with pytest.raises(ValueError, match="span"):
        ema(values, span=0.5)


def test_mean_over_seeds_by_hand() -> None:
    result = mean_over_seeds(
        [curve((0, 1.0), (10, 4.0)), curve((0, 3.0), (10, 4.0)), curve((0, 5.0), (10, 7.0))]
    )
    assert result.steps.tolist() == [0, 10]
    assert result.mean.tolist() == [3.0, 5.0]
    np.testing.assert_allclose(result.std, [2.0, 3.0**0.5])  # divided by seeds - 1


def test_mean_only_where_every_seed_is() -> None:
    result = mean_over_seeds([curve((0, 1.0), (5, 9.0), (10, 2.0), (20, 100.0)), curve((0, 3.0), (10, 4.0))])
    assert result.steps.tolist() == [0, 10]
    assert result.mean.tolist() == [2.0, 3.0]
    assert mean_over_seeds([curve((0, 1.0)), curve((5, 1.0))]).steps.size == 0


def test_one_seed_has_no_spread() -> None:
    result = mean_over_seeds([curve((0, 1.0), (10, 4.0))])
    assert result.mean.tolist() == [1.0, 4.0]
    assert result.std.tolist() == [0.0, 0.0]


def test_line_is_the_smoothed_mean_and_points_are_the_rows() -> None:
    runs = table({"seed": 0}, {"seed": 10})
    (axis,) = learning_curve_figure(runs).axes
    points = [line for line in axis.get_lines() if line.get_marker() == "."]
    (line,) = [line for line in axis.get_lines() if line.get_marker() != "."]
    steps = np.arange(0, 11_000, 1_000)
    assert len(points) == 2
    np.testing.assert_allclose(np.asarray(points[0].get_ydata()), steps / 100)
    np.testing.assert_allclose(np.asarray(points[1].get_ydata()), steps / 100 + 10)
    np.testing.assert_array_equal(line.get_xdata(), steps)
    np.testing.assert_allclose(
        np.asarray(line.get_ydata()), pandas.Series(steps / 100 + 5).ewm(span=5).mean()
    )
    (shade,) = axis.collections
    corners = shade.get_paths()[0].get_extents()
    spread = 50**0.5  # sample standard deviation of 0 and 10
    np.testing.assert_allclose(corners.y0, 5 - spread)
    np.testing.assert_allclose(corners.y1 - spread, float(np.max(line.get_ydata())))
    assert not learning_curve_figure(table({"seed": 0})).axes[0].collections


def test_words_on_the_figure() -> None:
    (axis,) = learning_curve_figure(table({"seed": 0})).axes
    assert axis.get_xlabel() == "environment steps"
    assert axis.get_ylabel() == "mean return of 2 noise-free episodes"
    assert [text.get_text() for text in axis.texts] == ["hopper"]
    assert axis.get_title(loc="left") == "Hopper-v4"


def test_legend_names_algorithms_in_order_with_their_seeds() -> None:
    runs = table(
        {"algorithm": "sac-hpo", "variant": "leapfrog_steps=3"},
        {"algorithm": "sac-hpo", "seed": 1},
        {"algorithm": "sac-nf"},
        {"algorithm": "sac", "seed": 0},
        {"algorithm": "sac", "seed": 1},
        {"algorithm": "mine"},
    )
    assert legend(runs) == [
        "SAC, 2 seeds",
        "SAC-NF, 1 seed",
        "SAC-HPO, 1 seed",
        "SAC-HPO (leapfrog_steps=3), 1 seed",
        "mine, 1 seed",
    ]


def test_a_seed_that_stopped_early_is_mentioned() -> None:
    assert legend(table({"seed": 0}, {"seed": 1, "steps": range(0, 4_000, 1_000)})) == [
        "SAC-HPO, 2 seeds, mean up to 3k"
    ]
    assert legend(table({"seed": 0, "steps": [0]}, {"seed": 1, "steps": [500]})) == [
        "SAC-HPO, 2 seeds, no step in common"
    ]


def test_sweeps_are_told_apart_where_there_are_several() -> None:
    assert legend(table({"sweep": "a"}, {"sweep": "b"})) == ["SAC-HPO (a), 1 seed", "SAC-HPO (b), 1 seed"]


def test_panels_are_tasks_and_colours_agree_between_them() -> None:
    runs = table(
        {"algorithm": "sac", "task": "ant", "env_id": "Ant-v4"},
        {"algorithm": "sac-hpo", "task": "ant", "env_id": "Ant-v4"},
        {"algorithm": "sac-hpo"},
        {"algorithm": "sac-hpo", "seed": 1},
        {"algorithm": "sac", "task": "Pendulum-v1", "env_id": "Pendulum-v1"},
    )
    figure = learning_curve_figure(runs)
    titles = {axis.texts[0].get_text(): axis.get_title(loc="left") for axis in figure.axes}
    # seeds differ between panels, so they stand there instead of in the legend
    assert titles == {"ant": "Ant-v4\n1 seed", "hopper": "Hopper-v4\n2 seeds", "Pendulum-v1": "1 seed"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SAC", "SAC-HPO"]
    colors: dict[str, set[str]] = {}
    for axis in figure.axes:
        for line in axis.get_lines():
            if line.get_marker() != ".":
                colors.setdefault(str(line.get_label()), set()).add(str(line.get_color()))
    assert {label: len(found) for label, found in colors.items()} == {"SAC": 1, "SAC-HPO": 1}


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 8])
def test_a_picture_is_written_whole_with_everything_inside(tmp_path: Path, num_tasks: int) -> None:
    tasks = [
        {"task": f"task-{i}", "variant": v} for i in range(num_tasks) for v in ("default", "a long name " * 3)
    ]
    path = learning_curve(table(*tasks), tmp_path / "new" / "curve.png")
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]
    pixels = np.asarray(imread(io.BytesIO(path.read_bytes())))[:, :, :3]
    ink = np.asarray(np.any(pixels < 0.5, axis=2))
    assert 0.005 < ink.mean() < 0.3
    border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not border.any()  # nothing is cut off


def test_a_single_evaluation_is_visible() -> None:
    (axis,) = learning_curve_figure(table({"steps": [0]})).axes
    assert any(line.get_marker() == "o" for line in axis.get_lines())
    assert axis.get_xlim()[1] >= 1


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = learning_curve(table({"seed": 0}, {"seed": 1}), tmp_path / "a.png").read_bytes()
    shuffled = table({"seed": 1}, {"seed": 0})
    assert learning_curve(shuffled, tmp_path / "b.png").read_bytes() == first


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation rows"):
        learning_curve(SCHEMA.empty_table(), tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^Cannot write .*curve\.png"):
        learning_curve(table({}), tmp_path / "file" / "curve.png")


def test_importing_curves_is_light() -> None:
    script = (
        "import sys, rllib_hpo.analysis.curves; "
        "print({'ray', 'torch', 'wandb', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
