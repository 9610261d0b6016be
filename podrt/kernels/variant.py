"""What variants of all families have in common."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

from podrt.gpu.arch import KIB, Arch, get_arch
from podrt.spec.attention import AttentionSpec, KernelSpec
from podrt.spec.types import DType

Form = Literal["pod", "prefill", "decode"]

#: Short names of element types, for variant names.
DTYPE_TAGS = {"bfloat16": "bf16", "float16": "f16"}
#: Page sizes of the default variants; None is a contiguous cache.
DEFAULT_PAGE_SIZES = (None, 16)
#: Head dims of the default variants; a layer may have any other of `podrt.spec.types.HEAD_DIMS`.
DEFAULT_HEAD_DIMS = (64, 128, 256)
#: The kernels' static shared memory, rounded up to the alignment of the dynamic part.
STATIC_SMEM_BYTES = 1 * KIB
#: Tickets for which CTAs draw; SMs with ids beyond it share (see ``templates/common/queue.cuh``).
NUM_TICKETS = 256


class TileGeometry(NamedTuple):
    """What a variant means for planning, on a GPU of some SMs.

    Attributes
    ----------
    prefill_rows, decode_rows : int
        Packed query rows of a tile.
    prefill_kv_tile, decode_kv_tile : int
        Keys of one step; splits are cut at multiples of it.
    prefill_slots, decode_slots : int
        Units of each side that run at once when the other side has none.
    """

    prefill_rows: int
    decode_rows: int
    prefill_kv_tile: int
    decode_kv_tile: int
    prefill_slots: int
    decode_slots: int


class SmemBuffer(NamedTuple):
    """A part of a CTA's dynamic shared memory; those in use at different times may overlap.

    Attributes
    ----------
    name : str
    offset_bytes, size_bytes : int
    doc : str
        What it holds; may be empty.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    doc: str


class VariantForm:
    """What every variant answers about its form and architecture, whatever its family."""

    form: Form
    arch: str
    head_dim: int
    dtype: DType
    causal: bool
    page_size: int | None
    soft_cap: bool
    tree_mask: bool
    v_head_dim: int | None

    @cached_property
    def spec(self) -> KernelSpec:
        """What the kernel is compiled for, to be compared with that of a layer."""
        return KernelSpec(
            self.head_dim,
            self.dtype,
            self.causal,
            self.page_size,
            self.soft_cap,
            self.tree_mask,
            self.v_head_dim,
        )

    @property
    def value_dim(self) -> int:
        """Elements of a head of the values and of the output."""
        return self.spec.value_dim

    def require_spec(self, spec: AttentionSpec) -> None:
        """Check that the kernel is compiled for a layer.

        Raises
        ------
        ValueError
            It is for another one.
        """
        if self.spec != spec.kernel:
            raise ValueError(f"{self.name}: is for {self.spec}; the layer has {spec.kernel}")

    @property
    def limits(self) -> Arch:
        """Limits of `arch`."""
        return get_arch(self.arch)

    @property
    def has_prefill(self) -> bool:
        """Whether the kernel takes prefill work."""
        return self.form != "decode"

    @property
    def has_decode(self) -> bool:
        """Whether the kernel takes decode work."""
        return self.form != "prefill"

    @property
    def name(self) -> str:
        """Readable, file-safe name that is different for different variants."""
        raise NotImplementedError

    @property
    def smem_buffers(self) -> tuple[SmemBuffer, ...]:
        """What lies in the dynamic shared memory of a CTA, by offset."""
        raise NotImplementedError

    @property
    def role_registers(self) -> dict[str, int]:
        """Registers of a thread by role; empty where all threads keep what they begin with."""
        return {}
