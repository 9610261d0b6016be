"""CuPy makes a folder for its own kernels when it is imported; podrt sees to it that it can."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from atexit import register
from importlib.util import find_spec

VARIABLE = "CUPY_CACHE_DIR"


def default_is_usable() -> bool:
    """Make the folder that CuPy takes by default, as CuPy would; False if it cannot be written.

    Without a home it would be one called ``~`` in the working folder, which is not made.
    """
    folder = os.path.expanduser("~/.cupy/kernel_cache")
    if not os.path.isabs(folder):
        return False
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def ensure_cupy_folder() -> None:
    """Before CuPy is imported: name a temporary folder, with a warning, if its own cannot be made.

    Raises
    ------
    OSError
        No temporary folder can be made either.
    """
    if "cupy" in sys.modules or VARIABLE in os.environ or find_spec("cupy") is None:
        return
    if default_is_usable():
        return
    folder = tempfile.mkdtemp(prefix="podrt-cupy-")
    register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = folder
    warnings.warn(
        "podrt: CuPy's own kernels are kept for this process only, as its folder in the user's "
        f"home cannot be written; set {VARIABLE}",
        RuntimeWarning,
        stacklevel=3,
    )
