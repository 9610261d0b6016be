"""`KernelConfig`: the single truth for one variant of the portable family."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import RESERVED_SMEM_BYTES, get_arch
from podrt.kernels.variant import DTYPE_TAGS, STATIC_SMEM_BYTES, Form, SmemBuffer, VariantForm
from podrt.spec.types import ELEMENT_BYTES, HEAD_DIMS, HEAD_DIMS_TEXT, DType

_WARP = 32
_MMA_ROWS = 16
_MMA_DEPTH = 16
_MAX_THREADS = 1024
_SWIZZLE_COLUMNS = 64


def row_columns_of(head_dim: int) -> int:
    """Return the columns of a row in shared memory: `head_dim`, then some that are never read."""
    return -(-head_dim // _SWIZZLE_COLUMNS) * _SWIZZLE_COLUMNS


@dataclass(frozen=True)
class Tile:
    """Shape of one side's work.

    Attributes
    ----------
    rows : int
        Packed query rows: 16 or 32 for each warp that shares the tile.
    kv_tile : int
        Keys in one step of the main loop, a multiple of 16.
    kv_slots : int
        Depth of the shared-memory ring; each slot holds one K or one V tile, so 2 is the least.
    """

    rows: int
    kv_tile: int
    kv_slots: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.kv_tile}s{self.kv_slots}"


@dataclass(frozen=True)
class KernelConfig(VariantForm):
    """One kernel variant of the portable family (sm_80 and newer).

    Construction refuses what cannot run and names the limit that it breaks.

    Attributes
    ----------
    form : {"pod", "prefill", "decode"}
        The fused kernel, or one side alone.
    arch : str
        NVRTC target such as ``"sm_90a"``.
    dtype : {"bfloat16", "float16"}
        Element type of q, k, v and out.
    head_dim : int
        Elements of a head of q and the keys, a multiple of 8 from 32 to 256.
    prefill, decode : Tile
        A prefill tile is shared by all warps of the CTA; every warp has a decode tile of its own
        (POD-Attention's virtual decode CTAs).
    warps : int
        Warps of one CTA.
    ctas_per_sm : int
        CTAs that must fit on one SM together; bounds registers and shared memory.
    page_size : int or None
        Tokens of a page of the KV cache; None for a contiguous cache.
    causal : bool
        Bottom-right aligned causal mask.
    soft_cap : bool
        Scores are capped; without, the kernel has no instruction for it.
    tree_mask : bool
        Decodes have trees; likewise.
    v_head_dim : int or None
        Elements of a head of the values and of the output, likewise, but fewer than `head_dim`;
        None for as many. Rows of V in shared memory are as long as those of K.
    """

    form: Form
    arch: str
    dtype: DType
    head_dim: int
    prefill: Tile
    decode: Tile
    warps: int
    ctas_per_sm: int
    page_size: int | None = None
    causal: bool = True
    soft_cap: bool = False
    tree_mask: bool = False
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_tiles()
        self._check_residency()

    @property
    def family(self) -> str:
        """Kernel family; also its folder in ``templates/``."""
        return "portable"

    @property
    def decode_rows(self) -> int:
        """Packed query rows of a decode tile."""
        return self.decode.rows

    @property
    def threads(self) -> int:
        """Threads of one CTA."""
        return self.warps * _WARP

    @property
    def row_columns(self) -> int:
        """Columns of a row in shared memory."""
        return row_columns_of(self.head_dim)

    @property
    def _row_bytes(self) -> int:
        return self.row_columns * ELEMENT_BYTES[self.dtype]

    @property
    def prefill_smem_bytes(self) -> int:
        """Shared memory of the prefill role: Q tile and K/V ring."""
        rows = self.prefill.rows + self.prefill.kv_slots * self.prefill.kv_tile
        return rows * self._row_bytes

    @property
    def decode_smem_bytes(self) -> int:
        """Shared memory of the decode role: one K/V ring per warp (Q lives in registers)."""
        rows = self.warps * self.decode.kv_slots * self.decode.kv_tile
        return rows * self._row_bytes

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA."""
        return max(
            self.prefill_smem_bytes if self.has_prefill else 0,
            self.decode_smem_bytes if self.has_decode else 0,
        )

    @property
    def smem_buffers(self) -> tuple[SmemBuffer, ...]:
        """What lies in the dynamic shared memory of a CTA, which has one role at a time."""
        q = self.prefill.rows * self._row_bytes
        kv = self.prefill_smem_bytes - q
        prefill = (
            SmemBuffer("PrefillQ", 0, q, "one prefill tile"),
            SmemBuffer("PrefillRing", q, kv, "tiles of K and V in turn"),
        )
        decode = SmemBuffer("DecodeRings", 0, self.decode_smem_bytes, "of each warp, K and V")
        there = prefill * self.has_prefill + (decode,) * self.has_decode
        return tuple(sorted(there, key=lambda buffer: buffer.offset_bytes))

    @property
    def max_registers(self) -> int:
        """Most registers a thread may have so that `ctas_per_sm` CTAs fit."""
        return min(255, self.limits.registers_per_sm // (self.ctas_per_sm * self.threads) // 8 * 8)

    @property
    def name(self) -> str:
        """Readable, file-safe name that is different for different variants."""
        parts = [self.form, self.family, self.arch, DTYPE_TAGS[self.dtype], self.spec.heads_tag]
        if self.has_prefill:
            parts.append(f"p{self.prefill}")
        if self.has_decode:
            parts.append(f"d{self.decode}")
        parts.append(f"w{self.warps}c{self.ctas_per_sm}")
        parts.append("contiguous" if self.page_size is None else f"page{self.page_size}")
        parts.append("causal" if self.causal else "full")
        if self.soft_cap:
            parts.append("softcap")
        if self.tree_mask:
            parts.append("tree")
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, for JSON."""
        return asdict(self)

    def _check_choices(self) -> None:
        for field, allowed in (
            ("form", get_args(Form)),
            ("dtype", get_args(DType)),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise UnsupportedConfigError(
                    f"{field}={value!r}: allowed are {', '.join(map(repr, allowed))}"
                )
        # 64.0 and 64 are equal, but would be rendered differently.
        if type(self.head_dim) is not int or self.head_dim not in HEAD_DIMS:
            raise UnsupportedConfigError(
                f"head_dim={self.head_dim!r}: allowed are {HEAD_DIMS_TEXT}"
            )
        v_head_dim = self.v_head_dim
        if v_head_dim is not None and (
            type(v_head_dim) is not int
            or v_head_dim not in HEAD_DIMS
            or v_head_dim >= self.head_dim
        ):
            raise UnsupportedConfigError(
                f"v_head_dim={v_head_dim!r}: allowed are None and {HEAD_DIMS_TEXT}, below "
                f"head_dim={self.head_dim}"
            )
        for field in ("warps", "ctas_per_sm"):
            _require_positive_int(field, getattr(self, field))
        for side in ("prefill", "decode"):
            for field, value in vars(getattr(self, side)).items():
                _require_positive_int(f"{side}.{field}", value)
        if self.page_size is not None:
            _require_positive_int("page_size", self.page_size, ", or None")
        for field in ("causal", "soft_cap", "tree_mask"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise UnsupportedConfigError(f"{field}={value!r}: must be a bool")
        if self.tree_mask and not self.causal:
            raise UnsupportedConfigError(
                "tree_mask=True with causal=False: a tree is a causal mask"
            )
        get_arch(self.arch)

    def _check_tiles(self) -> None:
        for side, warps in (("prefill", self.warps), ("decode", 1)):
            tile: Tile = getattr(self, side)
            if tile.rows not in (_MMA_ROWS * warps, 2 * _MMA_ROWS * warps):
                raise UnsupportedConfigError(
                    f"{side}.rows={tile.rows}: {warps} warp(s) share the tile, so it must have "
                    f"{_MMA_ROWS * warps} or {2 * _MMA_ROWS * warps} rows"
                )
            if tile.kv_tile % _MMA_DEPTH or tile.kv_tile % warps:
                raise UnsupportedConfigError(
                    f"{side}.kv_tile={tile.kv_tile}: must be a multiple of {_MMA_DEPTH} "
                    f"that {warps} warp(s) share evenly"
                )
            if tile.kv_tile // warps > _WARP:
                raise UnsupportedConfigError(
                    f"{side}.kv_tile={tile.kv_tile}: at most {_WARP} keys for each of "
                    f"{warps} warp(s)"
                )
            if tile.kv_slots < 2:
                raise UnsupportedConfigError(f"{side}.kv_slots={tile.kv_slots}: at least 2")
        if self.decode.rows != _MMA_ROWS:
            raise UnsupportedConfigError(
                f"decode.rows={self.decode.rows}: a decode tile has {_MMA_ROWS} rows"
            )

    def _check_residency(self) -> None:
        limits = self.limits
        if self.threads > _MAX_THREADS:
            raise UnsupportedConfigError(
                f"warps={self.warps}: {self.threads} threads in a CTA; CUDA allows {_MAX_THREADS}"
            )
        per_cta = self.smem_bytes + STATIC_SMEM_BYTES
        if per_cta > limits.smem_per_cta_bytes:
            raise UnsupportedConfigError(
                f"{self.name}: needs {per_cta} bytes of shared memory in a CTA; "
                f"{limits.name} allows {limits.smem_per_cta_bytes}"
            )
        per_sm = self.ctas_per_sm * (per_cta + RESERVED_SMEM_BYTES)
        if per_sm > limits.smem_per_sm_bytes:
            raise UnsupportedConfigError(
                f"{self.name}: {self.ctas_per_sm} CTAs need {per_sm} bytes of shared memory on an "
                f"SM; {limits.name} has {limits.smem_per_sm_bytes}"
            )
        if self.ctas_per_sm * self.threads > limits.max_threads_per_sm:
            raise UnsupportedConfigError(
                f"{self.name}: {self.ctas_per_sm * self.threads} threads on an SM; "
                f"{limits.name} allows {limits.max_threads_per_sm}"
            )
        if self.ctas_per_sm > limits.max_ctas_per_sm:
            raise UnsupportedConfigError(
                f"ctas_per_sm={self.ctas_per_sm}: {limits.name} allows {limits.max_ctas_per_sm}"
            )


def _require_positive_int(name: str, value: Any, alternative: str = "") -> None:
    if type(value) is not int or value < 1:
        raise UnsupportedConfigError(f"{name}={value!r}: must be an int of at least 1{alternative}")
