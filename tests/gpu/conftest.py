"""Skips this folder on a machine without a usable GPU."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

import pytest

# JAX takes three quarters of the GPU's memory at its first call, and keeps them, unless told.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def pytest_collection_modifyitems(items):
    from podrt.errors import DeviceError
    from podrt.gpu.device import current_device

    try:
        current_device()
    except DeviceError as error:
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=f"no GPU: {error}"))


@pytest.fixture(params=["portable", "hopper"])
def family(request):
    """A kernel family; the Hopper one where the GPU can run it."""
    from gpu_support import skip_without_hopper

    if request.param == "hopper":
        skip_without_hopper()
    return request.param


@pytest.fixture
def much_memory():
    """Wait until no other process has a test that takes gigabytes: several leave nothing."""
    with (Path(tempfile.gettempdir()) / "podrt-gpu-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


#: What fixtures of a module may keep, in bytes.
_MOST_KEPT = 2**32


@pytest.fixture(autouse=True)
def give_memory_back():
    """Leave the GPU's memory to tests beside this one; a test that keeps much fails itself."""
    yield
    kept = 0
    if (cupy := sys.modules.get("cupy")) is not None:
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        kept += pool.used_bytes()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        kept += torch.cuda.memory_allocated()
    assert kept < _MOST_KEPT, f"{kept} bytes of GPU memory are still in use behind the test"
