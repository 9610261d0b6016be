"""`HopperConfig`: one variant of the Hopper family (wgmma and TMA, sm_90a)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from podrt.errors import UnsupportedConfigError
from podrt.kernels.hopper import shared_memory
from podrt.kernels.hopper.shared_memory import DECODE_KEYS, PREFILL_ROWS
from podrt.kernels.variant import DTYPE_TAGS, STATIC_SMEM_BYTES, Form, SmemBuffer, VariantForm
from podrt.spec.types import DType

HOPPER_ARCH = "sm_90a"
HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)
#: Values that may be narrower than keys, by `HEAD_DIMS`.
V_HEAD_DIMS: dict[int, tuple[int, ...]] = {192: (128,)}
#: Heads of which a unit of decode may take two that lie side by side: their rows are 192 bytes, so
#: that some of a line of memory, which has 128, is the next head's.
PAIRED_HEAD_DIMS = (96,)
KV_TILES = (48, 64, 80, 96, 112, 128, 176)
DECODE_ROWS = (8, 16, 32)
#: Tokens of a group that a TMA load places in a swizzled tile; pages that are no whole groups come
#: row by row.
GROUP_TOKENS = 8
#: Decode tiles of a step: more of them share the latency of its chain of products and softmax. At
#: head_dim 192 and 256 one is as many bytes.
DECODE_TILES = 2
#: Most columns of a tile in one slot of a decode ring.
_MOST_COLUMNS = 128
#: The same of one product of prefill beside decode, whose 512 threads are launched with too few
#: registers for accumulators of more.
_MOST_VALUE_COLUMNS = 192

#: Columns that one TMA load brings at most of heads whose number of columns they do not divide.
BLOCK_COLUMNS = 64
_WARP, _WARPGROUP = 32, 128
#: Registers that the warpgroups of one CTA share, in units of one thread of each (ISA limits).
_REGISTER_POOL = {3: 504, 4: 512}


def gathers_rows(page_size: int | None) -> bool:
    """Tell whether K and V are copied row by row, as no TMA load can place pieces of the pages."""
    return page_size is not None and page_size % GROUP_TOKENS != 0


def decode_rows_of(head_dim: int, page_size: int | None = None) -> tuple[int, ...]:
    """Return the packed query rows that a decode tile may have; registers decide."""
    if head_dim <= _MOST_VALUE_COLUMNS:
        return DECODE_ROWS
    return DECODE_ROWS[:1] if gathers_rows(page_size) else DECODE_ROWS[:-1]


def may_pair_heads(
    form: Form, head_dim: int, decode_rows: int, page_size: int | None = None
) -> bool:
    """Tell whether there is a kernel for heads in pairs, whose tiles have twice the rows."""
    return (
        form != "prefill"
        and head_dim in PAIRED_HEAD_DIMS
        and 2 * decode_rows in DECODE_ROWS
        and not gathers_rows(page_size)
    )


def piece_rows(page_size: int | None, tile_rows: int) -> int:
    """Return the tokens that one TMA load brings of a tile; see `HopperConfig.piece_rows`."""
    return tile_rows if page_size is None else math.gcd(page_size, tile_rows, DECODE_KEYS)


def fits_a_warp(head_dim: int, page_size: int | None, tile_rows: int) -> bool:
    """Tell whether a warp has a lane for every TMA load of a tile; row gathers need none."""
    blocks = 1 if head_dim % BLOCK_COLUMNS == 0 else -(-head_dim // BLOCK_COLUMNS)
    copies = tile_rows // piece_rows(page_size, tile_rows) * blocks
    return gathers_rows(page_size) or copies <= _WARP


@dataclass(frozen=True)
class HopperConfig(VariantForm):
    """One persistent CTA per SM: a producer warpgroup, one for decode, two for prefill or decode.

    Attributes
    ----------
    form : {"pod", "prefill", "decode"}
        The fused kernel, or one side alone.
    arch : str
        ``"sm_90a"``.
    dtype : {"bfloat16", "float16"}
        Element type of q, k, v and out.
    head_dim : int
        64, 80, 96, 112, 128, 192 or 256.
    decode_rows : int
        Packed query rows of a decode tile: 8, 16 or 32; at head_dim 256 8 or 16, where rows are
        gathered 8. Of heads in pairs those of one of them.
    kv_tile : int
        Keys of a prefill tile.
    stages : int
        Depth of the prefill ring, for K and V each.
    decode_slots : int
        Depth of a decode ring, in tiles of 64 keys or values, or parts of them, of
        `decode_columns`; `next_slots` has those of the rings that lie over the prefill tiles.
    producer_registers, decode_registers, prefill_registers : int
        Registers of a thread, by role.
    page_size : int or None
        Tokens of a page of the KV cache; None for a contiguous cache. Pages that hold no groups of
        8 tokens are gathered row by row.
    causal : bool
        Bottom-right aligned causal mask.
    soft_cap : bool
        Scores are capped; without, the kernel has no instruction for it.
    tree_mask : bool
        Decodes have trees; likewise.
    v_head_dim : int or None
        128 beside 192; None for values as wide as keys.
    next_decode_slots : int or None
        Most of `next_slots` in a fused kernel; None for as many as the prefill tiles have room for.
    head_pairs : bool
        A unit of decode is two KV heads, which lie side by side in the caches: as `may_pair_heads`
        says.
    """

    form: Form
    dtype: DType
    head_dim: int
    decode_rows: int = 8
    kv_tile: int = 128
    stages: int = 2
    decode_slots: int = 3
    producer_registers: int = 40
    decode_registers: int = 56
    prefill_registers: int = 208
    page_size: int | None = None
    causal: bool = True
    soft_cap: bool = False
    tree_mask: bool = False
    arch: str = HOPPER_ARCH
    v_head_dim: int | None = None
    next_decode_slots: int | None = None
    head_pairs: bool = False

    def __post_init__(self) -> None:
        if self.page_size is not None and (type(self.page_size) is not int or self.page_size < 1):
            raise UnsupportedConfigError(
                f"page_size={self.page_size!r}: must be an int of at least 1, or None"
            )
        for field, allowed in (
            ("form", get_args(Form)),
            ("dtype", get_args(DType)),
            ("head_dim", HEAD_DIMS),
            ("decode_rows", decode_rows_of(self.head_dim, self.page_size)),
            ("kv_tile", KV_TILES),
            ("arch", (HOPPER_ARCH,)),
            ("v_head_dim", (None, *V_HEAD_DIMS.get(self.head_dim, ()))),
        ):
            value = getattr(self, field)
            if value not in allowed or type(value) not in {type(choice) for choice in allowed}:
                raise UnsupportedConfigError(
                    f"{field}={value!r}: allowed are {', '.join(map(repr, allowed))}"
                )
        depths = ("stages", "decode_slots")
        for field in depths if self.next_decode_slots is None else (*depths, "next_decode_slots"):
            value = getattr(self, field)
            if type(value) is not int or value < 2:
                raise UnsupportedConfigError(f"{field}={value!r}: must be an int of at least 2")
        for field in ("causal", "soft_cap", "tree_mask", "head_pairs"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise UnsupportedConfigError(f"{field}={value!r}: allowed are True, False")
        if self.tree_mask and not self.causal:
            raise UnsupportedConfigError(
                "tree_mask=True with causal=False: a tree is a causal mask"
            )
        if self.head_pairs and not may_pair_heads(
            self.form, self.head_dim, self.decode_rows, self.page_size
        ):
            raise UnsupportedConfigError(
                f"head_pairs=True: is of decode at head_dim={PAIRED_HEAD_DIMS} in tiles of 8 or "
                f"16 rows, over pages of whole groups of {GROUP_TOKENS} tokens; got "
                f"form={self.form!r}, head_dim={self.head_dim}, decode_rows={self.decode_rows}, "
                f"page_size={self.page_size}"
            )
        self._check_budgets()

    @property
    def decode_heads(self) -> int:
        """KV heads of a unit of decode."""
        return 1 + self.head_pairs

    @property
    def decode_dim(self) -> int:
        """Columns of the keys of a unit of decode."""
        return self.decode_heads * self.head_dim

    @property
    def decode_tile_rows(self) -> int:
        """Rows of a decode tile, those of all heads of a unit."""
        return self.decode_heads * self.decode_rows

    @property
    def decode_tiles(self) -> int:
        """Tiles of `DECODE_KEYS` keys that a step of decode takes."""
        return DECODE_TILES if self.decode_dim <= _MOST_COLUMNS else 1

    @property
    def decode_columns(self) -> int:
        """Columns of a decode tile in one slot of the ring; the others follow in the next slot."""
        if self.decode_dim <= _MOST_COLUMNS:
            return self.decode_dim
        return math.gcd(self.decode_dim, _MOST_COLUMNS)

    @property
    def value_columns(self) -> int:
        """Columns of V in one product of prefill."""
        if self.form != "pod" or self.value_dim <= _MOST_VALUE_COLUMNS:
            return self.value_dim
        return _MOST_COLUMNS

    @property
    def family(self) -> str:
        """Kernel family; also its folder in ``templates/``."""
        return "hopper"

    @property
    def ctas_per_sm(self) -> int:
        """CTAs on one SM together."""
        return 1

    @property
    def lanes(self) -> int:
        """Decode units that a CTA can have in work, each with a producer warp and a ring.

        In the fused kernel the last two are the prefill warpgroups, when they have no prefill.
        """
        return {"prefill": 0, "decode": 2, "pod": 3}[self.form]

    @property
    def warpgroups(self) -> int:
        """Warpgroups of the CTA."""
        return 1 + int(self.form == "pod") + 2

    @property
    def threads(self) -> int:
        """Threads of the CTA."""
        return self.warpgroups * _WARPGROUP

    @property
    def gathers_rows(self) -> bool:
        """Whether K and V are copied row by row, as no TMA load can place pieces of pages."""
        return gathers_rows(self.page_size)

    def piece_rows(self, tile_rows: int) -> int:
        """Return the tokens that one TMA load brings of a tile of `tile_rows`.

        A piece must not leave its page, and tiles begin at multiples of `DECODE_KEYS`, as splits
        do, or where a window begins, of its greatest common divisor with a page. A contiguous
        cache's tile is one piece.
        """
        return piece_rows(self.page_size, tile_rows)

    @property
    def smem_buffers(self) -> tuple[SmemBuffer, ...]:
        """What lies in the dynamic shared memory of a CTA, by offset."""
        return shared_memory.smem_buffers(self)

    @property
    def launch_registers(self) -> int:
        """Registers that a thread has before the roles share them out."""
        return min(255, self.limits.registers_per_sm // self.threads // 8 * 8)

    @property
    def max_registers(self) -> int:
        """Most registers that a thread of any role has."""
        prefill = self.prefill_registers if self.has_prefill else 0
        decode = self.decode_registers if self.has_decode else 0
        return max(self.launch_registers, prefill, decode)

    @property
    def role_registers(self) -> dict[str, int]:
        """Registers of a thread by role, once the roles have shared them out."""
        registers = {"producer": self.producer_registers}
        if self.has_decode:
            registers["decode"] = self.decode_registers
        if self.has_prefill:
            registers["prefill"] = self.prefill_registers
        return registers

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of the CTA."""
        return shared_memory.smem_bytes(self)

    @property
    def next_slots(self) -> int:
        """Depth of the rings of decode lanes 1 and 2, which lie over the prefill tiles if any."""
        return shared_memory.next_slots(self)

    @property
    def name(self) -> str:
        """Readable, file-safe name that is different for different variants."""
        tag = DTYPE_TAGS[self.dtype]
        parts = [f"{self.form}_hopper_{self.arch}_{tag}_{self.spec.heads_tag}"]
        registers = [self.producer_registers]
        if self.has_prefill:
            parts.append(f"p{PREFILL_ROWS}x{self.kv_tile}s{self.stages}")
        if self.has_decode:
            next_slots = "" if self.next_decode_slots is None else f"n{self.next_decode_slots}"
            parts.append(f"d{self.decode_rows}x{DECODE_KEYS}s{self.decode_slots}{next_slots}")
            registers.append(self.decode_registers)
        if self.has_prefill:
            registers.append(self.prefill_registers)
        parts.append("regs" + "x".join(map(str, registers)))
        parts.append("contiguous" if self.page_size is None else f"page{self.page_size}")
        parts.append("causal" if self.causal else "full")
        if self.soft_cap:
            parts.append("softcap")
        if self.tree_mask:
            parts.append("tree")
        if self.head_pairs:
            parts.append("pairs")
        return "_".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, for JSON."""
        return asdict(self)

    def _check_budgets(self) -> None:
        roles = [self.producer_registers]
        roles += [self.decode_registers] * (self.warpgroups - 1 - 2 * int(self.has_prefill))
        roles += [self.prefill_registers] * 2 if self.has_prefill else []
        for registers in roles:
            if type(registers) is not int or registers % 8 or not 24 <= registers <= 256:
                raise UnsupportedConfigError(
                    f"registers of a role are {registers}: must be a multiple of 8 from 24 to 256"
                )
        pool = _REGISTER_POOL[self.warpgroups]
        if sum(roles) > pool:
            raise UnsupportedConfigError(
                f"registers of all roles add up to {sum(roles)}; {self.warpgroups} warpgroups "
                f"have {pool}"
            )
        step_slots = self.decode_tiles * self.decode_dim // self.decode_columns
        if self.has_decode and self.next_slots < step_slots:
            raise UnsupportedConfigError(
                f"{self.name}: the prefill tiles have room for {self.next_slots} slots of decode "
                f"in each of lanes 1 and 2; a step takes {step_slots} at once"
            )
        if self.has_prefill and not fits_a_warp(self.head_dim, self.page_size, self.kv_tile):
            raise UnsupportedConfigError(
                f"kv_tile={self.kv_tile}: with head_dim={self.head_dim} and "
                f"page_size={self.page_size} a tile takes more than {_WARP} copies; take a smaller "
                "tile"
            )
        smem_bytes = self.smem_bytes + STATIC_SMEM_BYTES
        if smem_bytes > self.limits.smem_per_cta_bytes:
            raise UnsupportedConfigError(
                f"{self.name}: needs {smem_bytes} bytes of shared memory in a CTA; "
                f"{self.arch} allows {self.limits.smem_per_cta_bytes}"
            )
