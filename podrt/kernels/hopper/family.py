"""The Hopper family (wgmma and TMA, sm_90a), as `podrt.kernels.family.Family` asks."""

from __future__ import annotations

from typing import Any

import numpy as np

from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.arguments import Buffers
from podrt.kernels.family import Filters
from podrt.kernels.hopper import arguments, host, presets, tiles
from podrt.kernels.hopper.arguments import HopperArguments
from podrt.kernels.hopper.config import HOPPER_ARCH, HopperConfig
from podrt.kernels.hopper.rows import RowSteps
from podrt.kernels.tensor_map import MapShape
from podrt.kernels.variant import TileGeometry
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors


class HopperFamily:
    """One persistent CTA per SM, with a producer, a decode and a prefill role."""

    name = "hopper"

    def why_unsupported(self, spec: AttentionSpec, arch: str) -> str | None:
        """Say why there is no kernel for a layer on an architecture; None if there is one."""
        return presets.why_unsupported(arch, spec.head_dim, spec.group, spec.v_head_dim)

    def default_variants(self, arch: str, filters: Filters) -> list[HopperConfig]:
        """Return the causal variants that a schedule may pick on `arch`."""
        if get_arch(arch).name != HOPPER_ARCH:
            return []
        return presets.default_hopper_variants(
            forms=filters.forms,
            dtypes=filters.dtypes,
            head_dims=filters.head_dims,
            page_sizes=filters.page_sizes,
            decode_rows=filters.decode_rows,
            soft_caps=filters.soft_caps,
            tree_masks=filters.tree_masks,
            v_head_dim=filters.v_head_dim,
        )

    def geometry_of(self, config: HopperConfig, group: int, num_sms: int) -> TileGeometry:
        """Return what a variant means for planning."""
        return tiles.geometry_of(config, group, num_sms)

    def source_of(self, config: HopperConfig) -> KernelSource:
        """Render the CUDA C++ source of a variant."""
        return host.source_of(config)

    def grid_of(self, config: HopperConfig, plan: Plan, num_sms: int) -> int:
        """Return the CTAs of a launch."""
        return host.num_ctas(config, plan, num_sms)

    def params_dtype(self) -> np.dtype[np.void]:
        """Return the layout of the kernels' arguments."""
        return host.PARAMS_DTYPE

    def argument_block(
        self, config: HopperConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> HopperArguments:
        """Return the arguments of launches over tensors of one layout."""
        return HopperArguments(config, spec, tensors, buffers)

    def fixed_arguments(
        self, config: HopperConfig, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> dict[str, Any]:
        """Return what `argument_block` holds that no launch changes, by name."""
        return arguments.fixed_arguments(config, spec, tensors, buffers)

    def map_shapes(
        self, config: HopperConfig, spec: AttentionSpec, tensors: RunTensors
    ) -> dict[str, tuple[str, MapShape | RowSteps]]:
        """Return the tensor behind each tensor map or rows among the arguments, and how it lies."""
        return arguments.map_shapes(config, spec, tensors)

    def why_unreadable(self, config: HopperConfig, tensors: RunTensors) -> str | None:
        """Say why a variant cannot copy from tensors that lie like that; None if it can."""
        return arguments.why_unreadable(config, tensors)

    def stand_ins(self, config: HopperConfig) -> tuple[HopperConfig, ...]:
        """Return, of a variant for heads in pairs, the one for heads of any strides."""
        return (presets.unpaired(config),) if config.head_pairs else ()

    def variant_for(self, config: HopperConfig, tensors: RunTensors) -> HopperConfig:
        """Return the variant, or its stand-in where heads are not in pairs."""
        if not config.head_pairs or arguments.lie_in_pairs(tensors):
            return config
        return presets.unpaired(config)
