"""Choose the graphics library with which MuJoCo renders without a display."""

from __future__ import annotations

import ctypes
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
        UserError: If neither is installed; it names the package.
    """
    if chosen := os.environ.get(GL_VARIABLE):
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


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
