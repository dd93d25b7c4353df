"""Render without a display: choose MuJoCo's graphics library, and keep pygame quiet."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
import os

from rllib_hpo.errors import UserError

_logger = logging.getLogger(__name__)
GL_VARIABLE = "MUJOCO_GL"
_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


def choose_renderer() -> str:
    """Choose EGL, or else OSMesa, and set MUJOCO_GL before a simulator is imported; a value set before stays.

    Returns:
        The value of MUJOCO_GL.

    Raises:
        UserError: If neither is installed, naming the package; or if MUJOCO_GL names one that is not.
    """
    load_compiler_first()
    if chosen := os.environ.get(GL_VARIABLE):
        library = _LIBRARIES.get(chosen.lower(), "")
        if library and not _loads(library):
            raise UserError(
                f"{GL_VARIABLE}={chosen} needs {library}, which this machine lacks: install it, or unset {GL_VARIABLE}."
            )
        return chosen
    for name, library in _LIBRARIES.items():
        if _loads(library):
            os.environ[GL_VARIABLE] = name
            _logger.info("MuJoCo renders with %s (%s=%s)", library, GL_VARIABLE, name)
            return name
    raise UserError(
        "Images of MuJoCo need EGL or OSMesa, and this machine has neither: on Debian and Ubuntu, `apt-get install "
        "libegl1 libgl1` or `apt-get install libosmesa6`."
    )


def choose_renderer_if_any() -> None:
    """Choose as `choose_renderer` does, and nothing where there is neither: not every simulator needs one.

    Raises:
        UserError: If MUJOCO_GL names a library that is not installed.
    """
    try:
        choose_renderer()
    except UserError:
        if os.environ.get(GL_VARIABLE):
            raise


def choose_renderer_for_rllib() -> None:
    """Choose a graphics library before RLlib is imported, if dm_control is installed.

    RLlib imports dm_control, which reads MUJOCO_GL then. Without it, dm_control would look for a display, and warn
    where there is none.

    Raises:
        UserError: If MUJOCO_GL names a library that is not installed, with which dm_control cannot be imported.
    """
    if importlib.util.find_spec("dm_control") is not None:
        choose_renderer_if_any()


def load_compiler_first() -> None:
    """Import Triton, if torch came with it, before anything renders.

    Triton and Mesa's EGL each bring an LLVM. A process that loads Mesa's first ends in a segmentation fault when torch
    imports Triton.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")


def quiet_pygame() -> None:
    """Keep pygame from looking for a screen and a sound card, and from printing what it finds."""
    for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(name, "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
