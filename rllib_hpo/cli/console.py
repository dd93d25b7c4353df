"""Define where commands print: `console` for results, `errors` for errors."""

import sys

from rich.console import Console

# No markup, because paths and names may contain brackets. A fixed width, because Rich folds tables in a pipe to 80
# columns.
_is_terminal = sys.stdout is not None and sys.stdout.isatty()  # stdout is None where the descriptor is closed
console = Console(width=None if _is_terminal else 160, markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)
