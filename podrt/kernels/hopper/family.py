"""The Hopper family (wgmma and TMA, sm_90a), as `podrt.kernels.family.Family` asks."""

from __future__ import annotations

from podrt.gpu.arch import get_arch
from podrt.jit import KernelSource
from podrt.kernels.family import Filters
from podrt.kernels.hopper import host, presets, tiles
from podrt.kernels.hopper.config import HOPPER_ARCH, HopperConfig
from podrt.kernels.variant import TileGeometry
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec


class HopperFamily:
    """One persistent CTA per SM, with a producer, a decode and a prefill role."""

    name = "hopper"

    def why_unsupported(self, spec: AttentionSpec, arch: str) -> str | None:
        """Say why there is no kernel for a layer on an architecture; None if there is one."""
        return presets.why_unsupported(arch, spec.head_dim, spec.group, spec.page_size)

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
        )

    def geometry_of(self, config: HopperConfig, group: int, num_sms: int) -> TileGeometry:
        """Return what a variant means for planning."""
        return tiles.geometry_of(config, group, num_sms)

    def source_of(self, config: HopperConfig) -> KernelSource:
        """Render the CUDA C++ source of a variant."""
        return host.source_of(config)

    def num_ctas(self, config: HopperConfig, plan: Plan, num_sms: int) -> int:
        """Return the grid of a launch."""
        return host.num_ctas(config, plan, num_sms)
