"""The kernel families, behind one set of functions."""

from __future__ import annotations

from podrt.jit import KernelSource
from podrt.kernels import hopper, portable
from podrt.kernels.config import KernelConfig
from podrt.kernels.hopper_config import HopperConfig

#: A variant of any family.
Variant = KernelConfig | HopperConfig


def source_of(config: Variant) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    if isinstance(config, HopperConfig):
        return hopper.source_of(config)
    return portable.source_of(config)
