"""Test the interactive report: the content of the file, and its use in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rllib_hpo.analysis.curves import Curve, ema, mean_over_seeds
from rllib_hpo.analysis.page import write_page
from rllib_hpo.analysis.report import write_report
from rllib_hpo.errors import StorageError
from tests.analysis.reader import Reader
from tests.results.rows import make_row

HOSTILE = "</script><img src=x onerror=alert(1)><b>&lt;</b>%{x}"
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><rect width="300" height="200"/></svg>'
)


def run(task: int, series: int, seed: int, evaluations: int = 31) -> dict[str, Any]:
    """Make rows of an invented run that learns."""
    rng = np.random.default_rng((task, series, seed))
    steps = 10_000 * np.arange(evaluations)
    returns = 800 * (1 - np.exp(-steps / (90_000 + 40_000 * series))) + rng.normal(0, 60, evaluations)
    return {
        "task": task,
        "series": series,
        "seed": seed,
        "trial_id": f"t{task}{series}{seed}",
        "config": f"c{series}",
        "steps": steps,
        "updates": np.maximum(steps - 1_000 - seed, 0),
        "wall_time_s": steps * (0.01 + 0.001 * seed),
        "return_mean": returns,
        "return_std": rng.uniform(5, 40, evaluations),
        "diagnostics": {"drift": rng.uniform(1e-4, 1e-3, evaluations)} if series else {},
    }


def report(tasks: int = 3, seeds: int = 5, evaluations: int = 31) -> dict[str, Any]:
    """Make a whole report; the second series' last seed lags, and the third series has one seed."""
    labels = ["SAC", "SAC-HPO (k-1)", f"SAC-NF {HOSTILE}"]
    names = ["hopper", "walker", "cheetah", "ant", "humanoid", "swimmer", "reacher", "pusher"][:tasks]
    runs = [
        run(task, series, seed, evaluations)
        for task in range(tasks)
        for series in (0, 1)
        for seed in range(seeds)
    ]
    runs += [run(task, 2, 0, evaluations) for task in range(tasks)]
    for behind in runs:
        if (behind["series"], behind["seed"]) == (1, seeds - 1):
            kept = 2 * evaluations // 3
            behind.update(
                {name: behind[name][:kept] for name in behind if isinstance(behind[name], np.ndarray)}
            )
            behind["diagnostics"] = {"drift": behind["diagnostics"]["drift"][:kept]}
    return {
        "title": "eight-tasks",
        "subtitle": "33 runs, commit b8fce07, Ray 2.60",
        "tasks": [{"name": name, "env_id": f"{name.title()}-v4"} for name in names],
        "series": [
            {"label": label, "algorithm": "sac", "variant": "", "sweep": "x", "color": color, "dash": dash}
            for label, color, dash in zip(
                labels, ["#0072B2", "#D55E00", "#000000"], ["solid", "dash", "dot"], strict=True
            )
        ],
        "runs": runs,
        "tables": [
            {
                "title": "Best return",
                "note": "Mean ± sample standard deviation over seeds of each run's best evaluation.",
                "columns": ["task", *labels],
                "rows": [[name, "383 ± 105", '1,024 ± 7', None] for name in names],
            }
        ],
        "figures": [{"title": "Performance profile", "note": "Share of runs above a score.", "svg": SVG}],
        "differences": {"columns": ["setting", *labels], "rows": [["leapfrog_steps", "-", "2", HOSTILE]]},
        "configs": {
            f"c{series}": {"algorithm": "sac", "gamma": 0.99, "hidden": [256, 256], "note": HOSTILE}
            for series in range(3)
        },
    }  # fmt: skip


class Page(HTMLParser):
    """Parse the elements of a file, the text of its scripts and all displayed text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.shown: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        last = self.elements[-1][0] if self.elements else ""
        (self.scripts if last == "script" and data.strip() else self.shown).append(data)


def embedded(path: Path) -> Any:
    return json.loads(Page(path).scripts[0])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_page(report(), tmp_path / "report/index.html")


def test_the_data_round_trip(written: Path) -> None:
    given = report()
    found = embedded(written)
    assert found["runs"][7]["return_mean"] == given["runs"][7]["return_mean"].tolist()
    for name in ("title", "tasks", "series", "tables", "figures", "differences", "configs"):
        assert found[name] == given[name]


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    data = report(tasks=1)
    data["runs"][0]["return_mean"][:2] = [np.nan, np.inf]
    data["configs"]["c0"]["bound"] = float("-inf")
    found = embedded(write_page(data, tmp_path / "index.html"))
    assert found["runs"][0]["return_mean"][:2] == [None, None]
    assert found["configs"]["c0"]["bound"] is None


def test_what_json_has_no_word_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_page({**report(), "configs": {"c0": {"when": object()}}}, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_nothing_is_fetched(written: Path) -> None:
    """No attribute that loads holds an address, and the content security policy forbids loading."""
    page = Page(written)
    loaded = [
        attrs.get(name) or "" for _, attrs in page.elements for name in ("src", "href", "srcset", "action")
    ]
    assert [address for address in loaded if address and not address.startswith("data:")] == []
    (policy,) = [
        attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    style = written.read_text().split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import", style)


def test_a_hostile_text_stays_text(written: Path) -> None:
    page = Page(written)
    assert len(page.scripts) == 3
    assert [attrs["alt"] for tag, attrs in page.elements if tag == "img"] == ["Performance profile"]
    assert f"SAC-NF {HOSTILE}" in page.shown
    assert not any("{{" in text for text in page.shown)


def test_braces_in_the_data_are_not_the_templates(tmp_path: Path) -> None:
    page = Page(write_page({**report(), "subtitle": "{{plotly}} {{nonsense}}"}, tmp_path / "index.html"))
    assert "{{plotly}} {{nonsense}}" in page.shown


def test_figures_and_tables_are_there_without_javascript(written: Path) -> None:
    page = Page(written)
    (picture,) = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert picture
    assert base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).decode() == SVG
    for text in ("Best return", "383 ± 105", "\N{EN DASH}", "leapfrog_steps", "t004", "300,000"):
        assert text in page.shown


def test_a_report_of_nothing_can_be_written(tmp_path: Path) -> None:
    empty = {"title": "none", "tasks": [], "series": [], "runs": [], "configs": {}}
    assert embedded(write_page(empty, tmp_path / "index.html")) == empty


def test_a_run_without_evaluations_has_a_row(tmp_path: Path) -> None:
    data = report(tasks=1, evaluations=0)
    assert "t000" in Page(write_page(data, tmp_path / "index.html")).shown


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_page(report(tasks=1), tmp_path / "file/index.html")


# In a browser.


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(report(), tmp_path_factory.mktemp("report") / "index.html")


@pytest.fixture
def reader(browser: Any, page_file: Path) -> Iterator[Reader]:
    """Open the report for a reader, and check that the console stayed empty."""
    reader = Reader(browser, page_file)
    reader.open()
    yield reader
    assert reader.console() == []


def expected(task: int, series: int, span: float, x: str = "steps") -> tuple[Any, Any, Any]:
    """Return x, mean and standard deviation of a line, from the data, by the functions of the figures."""
    runs = [run for run in report()["runs"] if (run["task"], run["series"]) == (task, series)]
    mean = mean_over_seeds([Curve(run["steps"], ema(run["return_mean"], span)) for run in runs])
    across = mean_over_seeds([Curve(run["steps"], np.asarray(run[x], np.float64)) for run in runs])
    return across.mean, mean.mean, mean.std


@pytest.mark.slow
@pytest.mark.parametrize(
    "span", [pytest.param(1, marks=pytest.mark.exhaustive), 5, pytest.param(23, marks=pytest.mark.exhaustive)]
)
def test_lines_are_the_means_that_python_computes(reader: Reader, span: int) -> None:
    reader.set("#span", span)
    for series in range(3):
        (line,) = reader.traces(1, "mean", series)
        x, mean, std = expected(1, series, span)
        np.testing.assert_allclose(line["x"], x, rtol=0, atol=1e-9)
        np.testing.assert_allclose(line["y"], mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose([point[2] for point in line["customdata"]], std, rtol=0, atol=1e-9)
    (band,) = reader.traces(1, "band", 0)
    x, mean, std = expected(1, 0, span)
    np.testing.assert_allclose(band["y"][:-1], [*(mean + std), *(mean - std)[::-1]], rtol=0, atol=1e-9)
    assert reader.traces(1, "band", 2) == [], "a single seed has no spread"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "column", "unit"), [("updates", "updates", 1), ("hours", "wall_time_s", 3600)]
)
def test_other_axes_show_the_seeds_mean_of_them(reader: Reader, axis: str, column: str, unit: float) -> None:
    reader.set("#x", axis)
    (line,) = reader.traces(0, "mean", 1)
    x, mean, _ = expected(0, 1, 5, column)
    np.testing.assert_allclose(line["x"], x / unit, rtol=0, atol=1e-9)
    np.testing.assert_allclose(line["y"], mean, rtol=0, atol=1e-9)
    reader.wait('document.querySelector(".plot .xtitle").textContent.match(arguments[0])', axis)


@pytest.mark.slow
def test_panels_say_how_many_seeds_and_how_far(reader: Reader) -> None:
    assert reader.texts(".panel h3") == ["hopper Hopper-v4", "walker Walker-v4", "cheetah Cheetah-v4"]
    assert reader.texts(".panel:first-child .key .note") == ["5 seeds", "5 seeds, mean up to 190k", "1 seed"]


@pytest.mark.slow
def test_controls_choose_what_is_shown(reader: Reader) -> None:
    reader.click(reader.box("walker"))
    assert reader.texts(".panel h3") == ["hopper Hopper-v4", "cheetah Cheetah-v4"]
    reader.click(reader.box("SAC"))
    assert reader.traces(0, "mean", 0) == []
    before = reader.traces(0, "mean", 1)
    reader.set("#slider", 30)
    assert reader.traces(0, "mean", 1) != before
    assert reader.find("#span").get_property("value") == "30"
    reader.click(reader.box("Show each seed"))
    assert len(reader.traces(0, "evaluations", 1)) == 5
    reader.set("#y", "drift")
    (line,) = reader.traces(0, "mean", 1)
    drift = [
        run["diagnostics"]["drift"] for run in report()["runs"] if (run["task"], run["series"]) == (0, 1)
    ]
    assert line["y"][0] == pytest.approx(np.mean([values[0] for values in drift]), abs=1e-12)
    reader.click(reader.find("#tasks legend button:last-child"))
    assert reader.texts(".panel h3") == []


@pytest.mark.slow
def test_a_view_can_be_bookmarked(reader: Reader) -> None:
    reader.click(reader.box("walker"))
    reader.set("#span", 9)
    reader.set("#x", "updates")
    reader.click(reader.box("Show each seed"))
    address = reader.wait('location.hash.includes("seeds=1") && location.hash')
    assert address == "#task=hopper&task=cheetah&span=9&x=updates&seeds=1"
    reader.open(address)
    assert reader.texts(".panel h3") == ["hopper Hopper-v4", "cheetah Cheetah-v4"]
    assert [reader.find(f"#{name}").get_property("value") for name in ("span", "x", "y")] == [
        "9",
        "updates",
        "return",
    ]
    assert len(reader.traces(0, "evaluations", 0)) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "fragment",
    [
        "#span=x&x=toString&y=&task=nobody",
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("#%%%", "#span=1e9", "#top")),
    ],
)
def test_an_address_that_makes_no_sense_still_opens(reader: Reader, fragment: str) -> None:
    reader.driver.get("about:blank")
    reader.driver.get(f"{reader.path.as_uri()}{fragment}")
    reader.wait('!document.getElementById("curves").hidden')
    assert reader.find("#x").get_property("value") == "steps"


@pytest.mark.slow
def test_hovering_a_line_tells_mean_and_spread(reader: Reader) -> None:
    text, _ = reader.hover(0, "mean", 0, 20)
    _, mean, std = expected(0, 0, 5)
    assert text == f"SAC200,000 stepsmean {mean[20]:.2f}std {std[20]:.2f}5 seeds"


@pytest.mark.slow
def test_hovering_an_evaluation_tells_what_was_measured(reader: Reader) -> None:
    for label in ("walker", "cheetah", "SAC"):
        reader.click(reader.box(label))
    reader.click(reader.box("Show each seed"))
    reader.set("#span", 100)  # a flat line does not lie over the points
    (measured,) = [run for run in report()["runs"] if (run["task"], run["series"], run["seed"]) == (0, 1, 0)]
    place = int(
        measured["return_mean"].argmax()
    )  # well above the smooth line, which would be hovered instead
    mean, std = measured["return_mean"][place], measured["return_std"][place]
    text, data = reader.hover(0, "evaluations", 1, place)
    assert data[:4] == [0, measured["steps"][place], mean, std]
    assert text == f"SAC-HPO (k-1), seed 0{measured['steps'][place]:,} stepsreturn {mean:.2f} ± {std:.2f}"


@pytest.mark.slow
def test_a_hostile_label_is_shown_as_it_is(reader: Reader) -> None:
    label = f"SAC-NF {HOSTILE}"
    assert reader.box(label).is_displayed()
    assert label in reader.texts(".panel:first-child .key span")
    for other in ("SAC", "SAC-HPO (k-1)"):
        reader.click(reader.box(other))
    text, _ = reader.hover(0, "mean", 2, 15)
    assert text.startswith(label)
    assert reader.find_all("img[onerror]") == []
    assert len(reader.find_all("img")) == 1


@pytest.mark.slow
def test_a_trial_opens_its_configuration(reader: Reader) -> None:
    row = reader.find("#trials tbody tr:nth-child(6)")
    assert row.text.split()[:3] == ["t010", "hopper", "SAC-HPO"]
    row.find_elements("css selector", "td")[3].click()
    assert reader.find("#trial").is_displayed()
    assert reader.find("#trial-title").text == "Trial t010"
    settings = dict(
        zip(reader.texts("#trial td:first-child"), reader.texts("#trial td:last-child"), strict=True)
    )
    assert settings == {"algorithm": "sac", "gamma": "0.99", "hidden": "[256,256]", "note": HOSTILE}
    reader.find("#trial form button").click()
    assert not reader.find("#trial").is_displayed()


@pytest.mark.slow
def test_tables_are_copied_as_csv(reader: Reader) -> None:
    reader.driver.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    for button in (reader.find(".tables .copy"), reader.find("#trials .copy")):
        button.click()
        reader.wait('arguments[0].textContent === "Copied"', button)
        copied = reader.driver.execute_script("return window.copied").splitlines()
    assert copied[0] == "trial,task,series,seed,steps reached,last return,wall time (h)"
    first = report()["runs"][0]
    returned, hours = float(first["return_mean"][-1]), float(first["wall_time_s"][-1]) / 3600
    assert copied[1] == f"t000,hopper,SAC,0,300000,{returned!r},{hours!r}"


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, pytest.param(390, marks=pytest.mark.exhaustive)])
def test_a_phone_never_scrolls_sideways(reader: Reader, width: int) -> None:
    reader.open(width=width, height=844)
    assert not reader.find("#form").is_displayed()
    reader.find("#controls summary").click()
    assert reader.find("#form").is_displayed()
    assert reader.driver.execute_script("return document.scrollingElement.scrollWidth") <= width
    for panel in reader.find_all(".panel"):
        reader.driver.execute_script("arguments[0].scrollIntoView()", panel)
        reader.redrawn()
    assert reader.driver.execute_script("return document.scrollingElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_dark_page_has_no_black_line(reader: Reader) -> None:
    black = '[...document.querySelector(".plot").data].some((trace) => trace.line.color === "#000000")'
    assert reader.wait(black)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        assert reader.wait(f"!{black}")
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


SCRIPT = "<script>window.hit = 1</script> $x$"


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of rows whose sweep, variant, task and a setting are markup."""
    rows = [
        make_row(
            sweep=SCRIPT, algorithm=algorithm, variant=SCRIPT, task=task, seed=seed, env_steps=steps,
            returns=(float(seed + steps), 2.0), trial_id=f"{algorithm}{task}{seed}",
            config={"algorithm": algorithm, "note": SCRIPT, "evaluation_every": 1_000},
        )
        for algorithm in ("sac", "sac-hpo") for task in ("hopper", SCRIPT) for seed in (0, 1) for steps in (0, 1_000)
    ]  # fmt: skip
    table = pa.concat_tables([row.to_arrow() for row in rows])
    return write_report(table, tmp_path_factory.mktemp("hostile"))["page"]


@pytest.mark.slow
def test_names_out_of_rows_are_text(browser: Any, hostile_page: Path) -> None:
    reader = Reader(browser, hostile_page)
    reader.open()
    assert reader.driver.execute_script("return window.hit") is None
    assert reader.find("h1").text == SCRIPT
    assert any(text.startswith(SCRIPT) for text in reader.texts(".panel h3"))
    assert any(SCRIPT in text for text in reader.texts("#trials td"))
    reader.find("#trials tbody tr").find_elements("css selector", "td")[3].click()
    assert SCRIPT in reader.texts("#trial td")
    assert reader.console() == []


@pytest.mark.slow
def test_tables_link_to_their_rows(browser: Any, hostile_page: Path) -> None:
    reader = Reader(browser, hostile_page)
    reader.open()
    cards = reader.find_all(".tables .card, #differences, #trials")
    assert len(cards) > 5
    for card in cards:
        links = [link.get_attribute("href") for link in card.find_elements("css selector", "a")]
        assert links[0] == hostile_page.with_name("evaluations.csv").as_uri()
        assert all(Path(link.removeprefix("file://")).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        pytest.param(1400, "dark", marks=pytest.mark.exhaustive),
        pytest.param(390, "light", marks=pytest.mark.exhaustive),
        (390, "dark"),
    ],
)
def test_axe_finds_nothing_serious(browser: Any, hostile_page: Path, width: int, scheme: str) -> None:
    axe = Path(pytest.importorskip("axe_core_python").__file__).with_name("axe.min.js").read_text()
    reader = Reader(browser, hostile_page)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        reader.open(width=width)
        browser.execute_script(axe)
        found = browser.execute_async_script("axe.run().then(arguments[0])")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found["passes"]) > 10
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []


def test_series_differ_in_line_style_too(tmp_path: Path) -> None:
    """Plotly knows other names of styles than matplotlib."""
    names = ["SAC", "SAC-NF", "SAC-HPO", "TD3"]
    rows = [make_row(algorithm=name.lower(), trial_id=name, seed=seed) for name in names for seed in (0, 1)]
    page = write_report(pa.concat_tables([row.to_arrow() for row in rows]), tmp_path)["page"]
    series = embedded(page)["series"]
    assert [one["dash"] for one in series] == ["solid", "dash", "dashdot", "dot"]
    assert len({one["color"] for one in series}) == len(names)


@pytest.mark.slow
def test_a_large_report_is_drawn_in_seconds(browser: Any, tmp_path: Path) -> None:
    """The report has 120 runs of 300 evaluations; the machine may be busy."""
    reader = Reader(browser, write_page(report(tasks=8, seeds=7, evaluations=300), tmp_path / "index.html"))
    reader.open("#seeds=1")
    reader.redrawn()
    assert reader.driver.execute_script("return performance.now()") < 60_000
    assert reader.console() == []
