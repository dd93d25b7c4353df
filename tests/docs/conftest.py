"""The browser that reads the report reads the site, too."""

from tests.analysis.conftest import browser

__all__ = ["browser"]
