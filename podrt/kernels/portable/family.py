"""The portable family (sm_80 and newer), as `podrt.kernels.family.Family` asks."""

from __future__ import annotations

from typing import Any

import numpy as np

from podrt.jit import KernelSource
from podrt.kernels.arguments import Buffers
from podrt.kernels.family import Filters
from podrt.kernels.portable import arguments, host, presets, tiles
from podrt.kernels.portable.arguments import PortableArguments
from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.tensor_map import MapShape
from podrt.kernels.variant import TileGeometry
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors


class PortableFamily:
    """CTAs that take prefill or decode work by their SM."""

    name = "portable"

    def why_unsupported(self, spec: AttentionSpec, arch: str) -> str | None:
        """Return None: there is a kernel for every layer on every architecture."""
        return None

    def default_variants(self, arch: str, filters: Filters) -> list[KernelConfig]:
        """Return the causal variants that a schedule may pick on `arch`."""
        return presets.default_variants(
            arch,
            forms=filters.forms,
            dtypes=filters.dtypes,
            head_dims=filters.head_dims,
            page_sizes=filters.page_sizes,
            soft_caps=filters.soft_caps,
            tree_masks=filters.tree_masks,
            v_head_dim=filters.v_head_dim,
        )

    def geometry_of(self, config: KernelConfig, group: int, num_sms: int) -> TileGeometry:
        """Return what a variant means for planning."""
        return tiles.geometry_of(config, num_sms)

    def source_of(self, config: KernelConfig) -> KernelSource:
        """Render the CUDA C++ source of a variant."""
        return host.source_of(config)

    def grid_of(self, config: KernelConfig, plan: Plan, num_sms: int) -> int:
        """Return the CTAs of a launch."""
        return host.num_ctas(config, plan.num_prefill_units, plan.num_decode_units, num_sms)

    def params_dtype(self) -> np.dtype[np.void]:
        """Return the layout of the kernels' arguments."""
        return host.PARAMS_DTYPE

    def argument_block(
        self, config: KernelConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> PortableArguments:
        """Return the arguments of launches over tensors of one layout."""
        return PortableArguments(config, spec, tensors, buffers)

    def fixed_arguments(
        self, config: KernelConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> dict[str, Any]:
        """Return what `argument_block` holds that no launch changes, by name."""
        return arguments.fixed_arguments(spec, tensors, buffers)

    def map_shapes(
        self, config: KernelConfig, spec: AttentionSpec, tensors: RunTensors
    ) -> dict[str, tuple[str, MapShape]]:
        """Return nothing: the kernels take addresses."""
        return {}

    def why_unreadable(self, config: KernelConfig, tensors: RunTensors) -> str | None:
        """Return None: the kernels read whatever passed the checks."""
        return None

    def stand_ins(self, config: KernelConfig) -> tuple[KernelConfig, ...]:
        """Return nothing: no kernel asks how tensors lie."""
        return ()

    def variant_for(self, config: KernelConfig, tensors: RunTensors) -> KernelConfig:
        """Return the variant."""
        return config
