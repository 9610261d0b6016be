"""Skips this folder on a machine without a usable GPU."""

import pytest

from podrt.errors import DeviceError
from podrt.gpu.device import current_device


def pytest_collection_modifyitems(items):
    try:
        current_device()
    except DeviceError as error:
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=f"no GPU: {error}"))
