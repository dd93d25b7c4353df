"""Share the browser of the report's tests."""

from tests.analysis.conftest import browser

__all__ = ["browser"]
