"""Where commands print: `console` what was asked for, `errors` what went wrong."""

import sys

from rich.console import Console

# A pipe or a file has no width; Rich would fold the tables to 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True)
