"""The notebooks run from top to bottom, and say what they said when they were committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def said(cell: Any) -> list[str]:
    """What a cell printed and the tables it showed; pictures are as matplotlib's version has them."""
    texts = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return ["" if "object at" in text or "Image" in text else text for text in texts]


def kinds(cell: Any) -> list[set[str]]:
    return [set(output.get("data", {"text": ""})) for output in cell.get("outputs", ())]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["ablations", "compare_algorithms", "policy_shape"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(run, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    pictures = 0
    for before, after in zip(committed.cells, run.cells, strict=True):
        if before.cell_type == "code":
            assert said(after) == said(before), before.source
            assert kinds(after) == kinds(before), before.source
            pictures += sum("image/png" in kind for kind in kinds(before))
    assert pictures >= 1, "committed without its outputs"
