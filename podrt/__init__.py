"""podrt: prefill and decode attention of a hybrid batch in one GPU launch, compiled at run time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from podrt._version import __version__

if TYPE_CHECKING:
    from podrt.attention import HybridAttention
    from podrt.cache_write import write_cache
    from podrt.errors import (
        CompileError,
        DeviceError,
        MissingKernelError,
        PodrtError,
        UnsupportedConfigError,
    )
    from podrt.functional import hybrid_attention
    from podrt.host_attention import HostAttention
    from podrt.kernels.hopper.config import HopperConfig
    from podrt.kernels.portable.config import KernelConfig, Tile
    from podrt.policy.policies import Policy
    from podrt.runtime.kernels import compile_variant as compile
    from podrt.shared_prefix import SharedPrefixAttention
    from podrt.state_merge import merge_states

#: Public name -> module that defines it, and the name there; imported on first use.
_PUBLIC = {
    "CompileError": ("podrt.errors", "CompileError"),
    "DeviceError": ("podrt.errors", "DeviceError"),
    "HopperConfig": ("podrt.kernels.hopper.config", "HopperConfig"),
    "HostAttention": ("podrt.host_attention", "HostAttention"),
    "HybridAttention": ("podrt.attention", "HybridAttention"),
    "KernelConfig": ("podrt.kernels.portable.config", "KernelConfig"),
    "MissingKernelError": ("podrt.errors", "MissingKernelError"),
    "PodrtError": ("podrt.errors", "PodrtError"),
    "Policy": ("podrt.policy.policies", "Policy"),
    "SharedPrefixAttention": ("podrt.shared_prefix", "SharedPrefixAttention"),
    "Tile": ("podrt.kernels.portable.config", "Tile"),
    "UnsupportedConfigError": ("podrt.errors", "UnsupportedConfigError"),
    "compile": ("podrt.runtime.kernels", "compile_variant"),
    "hybrid_attention": ("podrt.functional", "hybrid_attention"),
    "merge_states": ("podrt.state_merge", "merge_states"),
    "write_cache": ("podrt.cache_write", "write_cache"),
}

__all__ = [
    "CompileError",
    "DeviceError",
    "HopperConfig",
    "HostAttention",
    "HybridAttention",
    "KernelConfig",
    "MissingKernelError",
    "PodrtError",
    "Policy",
    "SharedPrefixAttention",
    "Tile",
    "UnsupportedConfigError",
    "__version__",
    "compile",
    "hybrid_attention",
    "merge_states",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'podrt' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
