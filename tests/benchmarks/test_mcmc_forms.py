"""The page of MCMC policy optimization shows the measured table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mcmc_forms

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mcmc-po.md"


def test_the_page_shows_the_stored_rows(capsys: pytest.CaptureFixture[str]) -> None:
    mcmc_forms.main(["--show"])
    assert capsys.readouterr().out.strip() in PAGE.read_text()
    assert mcmc_forms.COMMON in PAGE.read_text()
