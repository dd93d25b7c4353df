"""Where commands print: `console` what was asked for, `errors` what went wrong."""

import sys

from rich.console import Console

# Paths and names may hold brackets, which are no markup. A pipe has no width; Rich would fold tables to 80 columns.
_is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where the descriptor is closed
console = Console(width=None if _is_terminal else 160, markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)
