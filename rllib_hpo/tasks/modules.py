"""Import modules that users name."""

from __future__ import annotations

import importlib
from types import ModuleType

from rllib_hpo.errors import UserError


def load_module(name: str) -> ModuleType:
    """Import the module with this dotted name.

    Raises:
        ImportError: If that fails, with the reason, whatever the module itself raises.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ImportError(f"{name!r} is not a module name such as package.module")
    try:
        return importlib.import_module(name)
    except (ImportError, UserError):
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ImportError(f"it raised {type(error).__name__}: {said}") from error
