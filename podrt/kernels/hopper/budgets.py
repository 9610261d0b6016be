"""How registers and shared memory are shared out in the Hopper kernels, by size of the heads.

Every entry compiles without spilling, which tests keep so. Plain ones were measured against others
(`design/hopper-kernel.md`), those of a feature, and of 80, 96, 112 and 192 columns, were not.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from podrt.kernels.hopper.config import BLOCK_COLUMNS
from podrt.kernels.variant import Form


class Budget(NamedTuple):
    """Keys of a prefill tile, and registers by role."""

    kv_tile: int
    producer_registers: int
    decode_registers: int
    prefill_registers: int


#: The size of heads: head_dim, with v_head_dim where values are narrower. Pairs of heads of 96 have
#: prefill's tiles of one and decode's of 192.
Dims = int | tuple[int, int] | Literal["2x96"]
PAIRS: dict[int, Dims] = {96: "2x96"}

_CAP_GATHER, _TREE_GATHER, _ALL = "cap gather", "tree gather", "cap tree gather"
#: Where 32 rows of decode leave too few registers for a larger tile and one more feature.
_ROWS_OF_32 = {
    "": Budget(96, 40, 120, 176),
    _CAP_GATHER: Budget(80, 40, 136, 168),
    _TREE_GATHER: Budget(80, 40, 136, 168),
}
_HEADS_OF_64_AND_ROWS_OF_32 = {
    "": Budget(128, 40, 120, 176),
    "cap tree": Budget(112, 40, 120, 176),
    _ALL: Budget(96, 40, 120, 176),
}
_HEADS_OF_64 = _HEADS_OF_64_AND_ROWS_OF_32 | {
    "": Budget(128, 40, 136, 168),
    "cap": Budget(128, 40, 120, 176),
}
#: Budgets of fused kernels by (dims, decode_rows), and by what takes more registers than a plain
#: kernel: capped scores, trees of decodes, rows that are gathered. Decode gets the registers that
#: it needs, prefill the rest. A tile is smaller than 128 keys where registers are too few for it,
#: or shared memory for it beside a decode ring of four tiles.
_PODS: dict[tuple[Dims, int], dict[str, Budget]] = {
    (64, 8): _HEADS_OF_64,
    (64, 16): _HEADS_OF_64,
    (64, 32): _HEADS_OF_64_AND_ROWS_OF_32,
    (80, 8): {"": Budget(112, 40, 104, 184)},
    (80, 16): {
        "": Budget(112, 40, 104, 184),
        "tree": Budget(96, 40, 104, 184),
        "cap tree": Budget(112, 40, 104, 184),
    },
    (80, 32): _ROWS_OF_32,
    (96, 8): {"": Budget(112, 40, 88, 192)},
    (96, 16): {
        "": Budget(112, 40, 88, 192),
        "tree": Budget(96, 40, 88, 192),
        "cap tree": Budget(112, 40, 88, 192),
    },
    (96, 32): _ROWS_OF_32,
    ("2x96", 8): {
        "": Budget(112, 40, 88, 192),
        "tree": Budget(112, 40, 104, 184),
        "cap tree": Budget(112, 40, 88, 192),
    },
    ("2x96", 16): {"": Budget(112, 40, 104, 184), "cap tree": Budget(96, 40, 104, 184)},
    (112, 8): {"": Budget(112, 40, 72, 200)},
    (112, 16): {"": Budget(112, 40, 88, 192), "cap tree": Budget(96, 40, 88, 192)},
    (112, 32): _ROWS_OF_32 | dict.fromkeys(("", "cap"), Budget(96, 40, 136, 168)),
    (128, 8): {
        "": Budget(112, 40, 104, 184),
        _CAP_GATHER: Budget(96, 40, 104, 184),
        _TREE_GATHER: Budget(96, 40, 104, 184),
    },
    (128, 16): {
        "": Budget(112, 40, 80, 192),
        "cap tree": Budget(112, 40, 104, 184),
        _ALL: Budget(80, 40, 104, 184),
    },
    (128, 32): _ROWS_OF_32,
    (192, 8): {"": Budget(80, 40, 72, 200)},
    (192, 16): {
        "": Budget(80, 40, 72, 200),
        _CAP_GATHER: Budget(80, 40, 88, 192),
        _TREE_GATHER: Budget(80, 40, 88, 192),
        _ALL: Budget(64, 40, 88, 192),
    },
    (192, 32): {"": Budget(64, 40, 120, 176)},
    ((192, 128), 8): {"": Budget(96, 40, 104, 184)},
    ((192, 128), 16): {"": Budget(96, 40, 104, 184)},
    ((192, 128), 32): {"": Budget(80, 40, 120, 176)},
    (256, 8): {"": Budget(48, 40, 72, 200)},
    (256, 16): {"": Budget(48, 32, 80, 200)},
}

#: Keys of a prefill tile without decode, by dims, and the larger one if there is any. With
#: larger tiles queries are read from shared memory less often, and a unit takes longer to begin and
#: to end (`bench/results/h200/NOTES.md`).
_PREFILL_TILES: dict[Dims, int] = {
    **dict.fromkeys((64, 80, 96, 112, 128, (192, 128)), 128),
    192: 112,
    256: 80,
}
LARGE_PREFILL_TILES: dict[Dims, int] = {80: 176, 96: 176, 112: 176, 128: 176}

#: Depth of the decode ring, by form, dims and keys of a prefill tile: what shared memory has
#: left, but for decode alone of narrow heads and of 192 columns, where less on its way is read
#: faster (`bench/results/h100/decode-ring.json`, `narrow-heads.txt`).
_DECODE_SLOTS: dict[tuple[Form, Dims, int], int] = {
    ("pod", 64, 128): 8,
    ("pod", 64, 112): 8,
    ("pod", 64, 96): 8,
    ("pod", 128, 112): 4,
    ("pod", 128, 96): 4,
    ("pod", 128, 80): 4,
    ("decode", 64, 128): 5,
    ("decode", 80, 128): 3,
    ("decode", 96, 128): 3,
    ("decode", 112, 128): 3,
    ("decode", 128, 128): 4,
    ("pod", "2x96", 112): 8,
    ("pod", "2x96", 96): 8,
    ("decode", "2x96", 128): 6,
    ("pod", 192, 80): 5,
    ("pod", 192, 64): 6,
    ("decode", 192, 128): 6,
    ("pod", (192, 128), 96): 5,
    ("pod", (192, 128), 80): 6,
    ("decode", (192, 128), 128): 11,
    ("pod", 256, 48): 3,
    ("decode", 256, 128): 6,
}


def pod_budget(dims: Dims, decode_rows: int, features: AbstractSet[str]) -> Budget:
    """Return the budget of a fused kernel: the one for most of its features, and for no others.

    Parameters
    ----------
    dims : Dims
    decode_rows : int
    features : set of {"cap", "tree", "gather"}
    """
    budgets = _PODS[dims, decode_rows]
    fitting = [names for names in budgets if features >= set(names.split())]
    return budgets[max(fitting, key=lambda names: len(names.split()))]


def decode_budget(*, gathers_rows: bool) -> Budget:
    """Return the budget of decode alone, where registers are left over."""
    return Budget(128, 48 if gathers_rows else 40, 216, 232)


def prefill_budget(dims: Dims, *, large_tile: bool) -> Budget:
    """Return the budget of prefill alone."""
    return Budget((LARGE_PREFILL_TILES if large_tile else _PREFILL_TILES)[dims], 40, 56, 232)


def decode_slots(form: Form, dims: Dims, kv_tile: int) -> int:
    """Return the depth of the decode ring; heads of 80 to 112 take the room of those of 128."""
    is_padded = isinstance(dims, int) and dims % BLOCK_COLUMNS
    in_room_of_128 = _DECODE_SLOTS.get((form, 128 if is_padded else dims, kv_tile), 2)
    return _DECODE_SLOTS.get((form, dims, kv_tile), in_room_of_128)
