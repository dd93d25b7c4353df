"""Test a report of rows on disk, made by the command and read in a browser."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from rllib_hpo.analysis.report import write_report
from rllib_hpo.cli import app
from rllib_hpo.errors import UserError
from rllib_hpo.results import SCHEMA, read_rows, rows_from_arrow, write_row
from tests.analysis.reader import Reader
from tests.analysis.test_tables import grid
from tests.results.rows import make_row

REPOSITORY = Path(__file__).resolve().parents[2]


def cli(*words: str, code: int = 0) -> str:
    """Return the output of `rllib-hpo WORDS`, run in this process, since a new one takes seconds to import."""
    done = CliRunner().invoke(app, words)
    printed = done.output + (f"Error: {done.exception}" if isinstance(done.exception, UserError) else "")
    assert (2 if isinstance(done.exception, UserError) else done.exit_code) == code, printed
    return printed


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    for row in rows_from_arrow(grid(ends={("sac-hpo", 2): 3})):
        write_row(root, row)
    return root


@pytest.fixture(scope="module")
def made(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "report"
    printed = cli("report", str(rows), "--out", str(out))
    assert str(out / "index.html") in printed
    return out


def test_everything_is_there(made: Path, rows: Path) -> None:
    figures = {path.name for path in (made / "figures").iterdir()}
    names = ("curves", "displacement", "intervals", "profiles", "improvement")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for name in names:
        assert imread(made / "figures" / f"{name}.png").std() > 0.01
    tables = {path.stem for path in (made / "tables").iterdir()}
    compared = {"aggregate", "improvement", "paired", "steps-to-reach"}
    assert tables == {"best", "final", "parameters", "differences", "check"} | compared
    assert "### Final return" in (made / "tables.md").read_text()
    assert "hopper up to 3,000 steps" in (made / "tables.md").read_text()
    with (made / "evaluations.csv").open() as file:
        evaluations = list(csv.DictReader(file))
    table = read_rows(rows)
    assert [float(line["return_mean"]) for line in evaluations] == table["return_mean"].to_pylist()


def test_the_page_holds_the_rows(made: Path, rows: Path) -> None:
    html = (made / "index.html").read_text()
    data = json.loads(html.split('type="application/json"', 1)[1].split(">", 1)[1].split("</script>", 1)[0])
    shown = {
        (run["trial_id"], step): value
        for run in data["runs"]
        for step, value in zip(run["steps"], run["return_mean"], strict=True)
    }
    assert shown == {
        (row.trial_id, row.env_steps): row.return_mean for row in rows_from_arrow(read_rows(rows))
    }
    assert data["configs"].keys() == {row.config_hash for row in rows_from_arrow(read_rows(rows))}
    assert data["figures"][0]["title"] == "How far the leapfrog moves actions: drift and noise"


def test_the_same_rows_give_the_same_report(rows: Path, tmp_path: Path) -> None:
    one, other = (write_report(read_rows(rows), tmp_path / name) for name in ("one", "other"))
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes(), (
            path
        )
    assert one.keys() == other.keys()


def test_rows_of_an_unknown_environment_are_reported_without_normalising(tmp_path: Path) -> None:
    table = grid()
    unknown = table.set_column(
        SCHEMA.get_field_index("env_id"), SCHEMA.field("env_id"), pa.array(["Mine-v0"] * table.num_rows)
    )
    write_report(unknown, tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("curves", "displacement") for kind in ("png", "pdf")
    }


def test_no_rows_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation rows"):
        write_report(SCHEMA.empty_table(), tmp_path)
    assert "There are no evaluation rows in" in cli("report", str(tmp_path), code=2)
    assert "does not exist" in cli("results", "show", str(tmp_path / "nothing"), code=2)


def test_results_commands(rows: Path, tmp_path: Path) -> None:
    shown = cli("results", "show", str(rows))
    assert "400.0 ± 200.0" in shown
    assert "3,000 - 4,000" in shown
    assert "Probability of improvement over SAC" in cli("results", "show", "--full", str(rows))
    assert "Error: 2 problems in 58 rows." in cli("results", "check", str(rows), code=2)
    for row in rows_from_arrow(grid()):
        write_row(tmp_path / "whole", row)
    assert "60 rows; none is missing" in cli("results", "check", str(tmp_path / "whole"))
    assert "58 new rows" in cli("results", "add", str(tmp_path / "all"), str(rows))
    assert "Merged 58 row files into 4" in cli("results", "compact", str(tmp_path / "all"))
    assert read_rows(tmp_path / "all").equals(read_rows(rows))
    assert "missing" in cli("results", "check", str(_with_a_gap(tmp_path)), code=2)


def _with_a_gap(tmp_path: Path) -> Path:
    for row in rows_from_arrow(grid()):
        config: dict[str, Any] = {"evaluation_every": 1_000}
        if (row.env_steps, row.seed) != (2_000, 1):
            write_row(tmp_path / "gap", type(row)(**{**vars(row), "config_json": json.dumps(config)}))
    return tmp_path / "gap"


@pytest.mark.slow
def test_a_tooltip_says_what_the_parquet_row_says(made: Path, rows: Path, browser: Any) -> None:
    reader = Reader(browser, made / "index.html")
    reader.open()
    reader.click(reader.box("Show each seed"))
    text, data = reader.hover(1, "evaluations", 1, 2)
    table = read_rows(rows).to_pylist()
    matching = [
        row
        for row in table
        if (row["task"], row["algorithm"], row["env_steps"]) == ("ant", "sac-hpo", 2_000)
        and row["return_mean"] in np.ravel(data).tolist()
    ]
    assert len(matching) == 1
    assert f"{matching[0]['return_mean']:.2f}" in text.replace(",", "")
    assert reader.console() == []


@pytest.fixture(scope="module")
def with_success(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """Return the report of two seeds whose evaluations report successes, and its rows."""
    folder = tmp_path_factory.mktemp("success")
    for seed, rates in enumerate(([0.0, 0.5, 1.0], [0.0, 0.25, 0.5])):
        for step, rate in zip((0, 1_000, 2_000), rates, strict=True):
            row = make_row(
                task="PointReach-v0", env_id="PointReach-v0", seed=seed, env_steps=step, success_rate=rate
            )
            write_row(folder / "rows", row)
    table = read_rows(folder / "rows")
    write_report(table, folder / "report")
    return folder / "report", table


def test_a_report_has_a_success_curve_where_rows_have_rates(
    with_success: tuple[Path, pa.Table], made: Path
) -> None:
    directory, _ = with_success
    assert imread(directory / "figures" / "success.png").std() > 0.01
    assert "0.75 ± 0.35" in (directory / "tables.md").read_text()
    assert not (made / "figures" / "success.png").exists()


@pytest.mark.slow
def test_the_page_draws_success_rates(with_success: tuple[Path, pa.Table], browser: Any) -> None:
    """As a quantity of the interactive curves, and as the figure, which a browser decodes."""
    directory, table = with_success
    reader = Reader(browser, directory / "index.html")
    reader.open("#y=success_rate&span=1")
    (line,) = reader.traces(0, "mean", 0)
    rates = np.array(table["success_rate"].to_pylist()).reshape(2, 3)
    assert line["x"] == [0, 1_000, 2_000]
    np.testing.assert_allclose(line["y"], rates.mean(0), rtol=0, atol=1e-12)
    (width,) = reader.driver.execute_script(
        "return [...document.querySelectorAll('figure img[alt=\"Success rates\"]')].map((i) => i.naturalWidth)"
    )
    assert width > 100
    assert reader.console() == []
