"""CuPy makes a folder for its own kernels when it is imported; podrt sees to it that it can."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from atexit import register

VARIABLE = "CUPY_CACHE_DIR"


def default_is_usable() -> bool:
    """Whether CuPy could make the folder that it takes by default; nothing is made to find out.

    Without a home that would be a folder called ``~`` in the working folder.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return False
    folder = os.path.join(home, ".cupy", "kernel_cache")
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def ensure_cupy_folder() -> None:
    """Before CuPy is imported: name a temporary folder, with a warning, if its own cannot be made.

    Raises
    ------
    OSError
        No temporary folder can be made either.
    """
    if "cupy" in sys.modules or VARIABLE in os.environ or default_is_usable():
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
