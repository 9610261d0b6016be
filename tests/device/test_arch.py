"""The table of architectures, and what is said of an unknown one."""

from __future__ import annotations

import pytest

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import ARCHS, DEFAULT_ARCHS, RESERVED_SMEM_BYTES, arch_of, get_arch


def test_hopper_is_compiled_for_its_own_instructions() -> None:
    hopper = arch_of((9, 0))
    assert hopper.name == "sm_90a"
    assert hopper.smem_per_cta_bytes == 227 * 1024
    assert get_arch("sm_90a") is hopper


def test_default_architectures_are_known() -> None:
    assert set(DEFAULT_ARCHS) <= set(ARCHS)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
def test_limits_agree_with_each_other(arch) -> None:
    assert arch_of(arch.compute_capability) is arch
    assert arch.smem_per_cta_bytes + RESERVED_SMEM_BYTES == arch.smem_per_sm_bytes
    assert arch.max_threads_per_sm % 32 == 0
    assert arch.max_threads_per_sm <= 32 * 64
    digits = "{}{}".format(*arch.compute_capability)
    assert arch.name.removeprefix("sm_").rstrip("a") == digits


@pytest.mark.parametrize("name", ["sm_90", "sm_75", "90a", ""])
def test_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"arch='{name}': known are sm_80, .*sm_90a"):
        get_arch(name)


def test_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedConfigError, match=r"capability 7\.5: known are 8\.0, .*12\.1"):
        arch_of((7, 5))
