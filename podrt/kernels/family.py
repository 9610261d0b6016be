"""`Family`: what every kernel family answers, so that nobody need know which there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np

from podrt.jit import KernelSource
from podrt.kernels.arguments import Buffers
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES, Form, TileGeometry
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec
from podrt.spec.types import DType
from podrt.tensors.run_tensors import RunTensors


@dataclass(frozen=True)
class Filters:
    """Which of a family's default variants to make.

    Attributes
    ----------
    forms, dtypes : tuple
        What to keep.
    head_dims : tuple of int
        Heads to make variants for; a family leaves out what it cannot serve.
    page_sizes : tuple of int or None
        Pages to make variants for likewise, None being a contiguous cache.
    decode_rows : tuple of int
        Rows of a decode tile, where the family has several.
    soft_caps : tuple of bool
        Whether scores are capped.
    tree_masks : tuple of bool
        Whether decodes have trees.
    v_head_dim : int or None
        Elements of a head of the values, fewer than of the keys; None for as many.
    """

    forms: tuple[Form, ...] = get_args(Form)
    dtypes: tuple[DType, ...] = get_args(DType)
    head_dims: tuple[int, ...] = DEFAULT_HEAD_DIMS
    page_sizes: tuple[int | None, ...] = DEFAULT_PAGE_SIZES
    decode_rows: tuple[int, ...] = (8, 16, 32)
    soft_caps: tuple[bool, ...] = (False,)
    tree_masks: tuple[bool, ...] = (False,)
    v_head_dim: int | None = None

    @classmethod
    def of(cls, *, v_head_dim: int | None = None, **filters: Iterable[Any]) -> Filters:
        """Return filters from iterables, which may be iterators."""
        given: dict[str, Any] = {name: tuple(values) for name, values in filters.items()}
        return cls(**given, v_head_dim=v_head_dim)


class Family(Protocol):
    """One kind of kernel: what it can serve, how it is planned for, built and launched.

    A variant is passed as `config`: one of the family's own.

    Attributes
    ----------
    name : str
        Also the folder in ``templates/``, and `family` of every variant.
    """

    name: str

    def why_unsupported(self, spec: AttentionSpec, arch: str) -> str | None:
        """Say why there is no kernel for a layer on an architecture; None if there is one."""

    def default_variants(self, arch: str, filters: Filters) -> list[Any]:
        """Return the causal variants that a schedule may pick on `arch`."""

    def geometry_of(self, config: Any, group: int, num_sms: int) -> TileGeometry:
        """Return what a variant means for planning `group` heads per KV head on so many SMs."""

    def source_of(self, config: Any) -> KernelSource:
        """Render the CUDA C++ source of a variant."""

    def grid_of(self, config: Any, plan: Plan, num_sms: int) -> int:
        """Return the CTAs of a launch: what the work needs, or as many as run at once."""

    def params_dtype(self) -> np.dtype[np.void]:
        """Return the layout of the kernels' arguments."""

    def argument_block(
        self, config: Any, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> Arguments:
        """Return the arguments of launches over tensors of one layout.

        Raises
        ------
        ValueError
            The family cannot read tensors that lie like that (`why_unreadable`).
        """

    def fixed_arguments(
        self, config: Any, spec: AttentionSpec, tensors: RunTensors, buffers: Buffers
    ) -> dict[str, Any]:
        """Return what `argument_block` holds that no launch changes, by name; needs no driver."""

    def map_shapes(
        self, config: Any, spec: AttentionSpec, tensors: RunTensors
    ) -> dict[str, tuple[str, Any]]:
        """Return the tensor behind each tensor map or rows among the arguments, and how it lies.

        `MapShape` says how for a map; members of `podrt.kernels.hopper.rows.CACHE_ROWS` for rows.
        """

    def why_unreadable(self, config: Any, tensors: RunTensors) -> str | None:
        """Say why a variant cannot read tensors that lie like that; None if it can.

        It can too where a stand-in does it (`variant_for`).
        """

    def stand_ins(self, config: Any) -> tuple[Any, ...]:
        """Return what may run a variant's plans in its place, depending on how tensors lie."""

    def variant_for(self, config: Any, tensors: RunTensors) -> Any:
        """Return what runs a variant's plans over tensors that lie like that: it or a stand-in."""


class Arguments(Protocol):
    """What a kernel is given, in memory that stays where it is; `bytes` of it are the struct."""

    def point_to(
        self, q: int, k_cache: int, v_cache: int, out: int, lse: int, sinks: int, rows: int
    ) -> int:
        """Take the addresses of a run whose q has `rows` rows; return what the driver takes."""

    def __bytes__(self) -> bytes: ...
