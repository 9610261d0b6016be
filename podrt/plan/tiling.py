"""`Tiling`: what the planner must know of a kernel and a GPU."""

from __future__ import annotations

from dataclasses import dataclass

#: Memory of `partial_o` that a plan may ask for unless told otherwise.
DEFAULT_PARTIAL_BYTES = 64 * 2**20
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class SplitCosts:
    """What the rules of splitting weigh, in keys that a slot could go through meanwhile.

    Attributes
    ----------
    start_keys : int
        What starting a unit costs.
    split_keys : int
        What one more split costs the merge of the tile that has the most.
    merge_keys : int
        What a piece of a split tile of prefill costs more than starting it.
    near_best : float
        An end is good enough up to so many times the earliest.
    worth_cutting : float
        Whole tiles of prefill are cut if that leaves at most this share of their time.
    max_idle_prefill : float
        Prefill is split as finely as allowed when it would leave more than this share of the slots
        idle.
    least_cut_keys : int
        Prefill of which no tile has so many keys stays whole: writing and merging two pieces takes
        longer than one tile.
    """

    start_keys: int
    split_keys: int
    merge_keys: int
    near_best: float
    worth_cutting: float
    max_idle_prefill: float
    least_cut_keys: int


@dataclass(frozen=True)
class KeySharing:
    """When the order of prefill decides how often keys are read from memory.

    Attributes
    ----------
    resident_bytes : int
        Keys and values that stay in L2 from one tile to the next that needs them.
    units_at_once : int
        Units of prefill that run at once whatever runs beside them.
    """

    resident_bytes: int
    units_at_once: int


@dataclass(frozen=True)
class RequestCuts:
    """How far keys are cut where each request is cut by itself.

    Attributes
    ----------
    decode_piece_keys : int or None
        Most keys of a piece of decode; None goes by the keys of the tile.
    """

    decode_piece_keys: int | None = None


@dataclass(frozen=True)
class Tiling:
    """What the planner must know of the kernel and the GPU.

    Attributes
    ----------
    prefill_rows, decode_rows : int
        Packed query rows of a tile.
    prefill_kv_tile, decode_kv_tile : int
        Keys of one step; splits are cut at multiples of it.
    prefill_slots, decode_slots : int
        Units of each side that run at once when the other side has none.
    min_prefill_keys, min_decode_keys : int
        No piece of a split is to be shorter: starting and merging it costs more than it saves.
    prefill_waves : int or None
        Prefill that leaves slots idle is split into at most that many times `prefill_slots`:
        POD-Attention section 4.2.4 found two waves to be the most that pays, beyond which splits
        only add memory traffic. None splits without that limit, as if there were no decode.
    decode_piece_keys, fused_piece_keys : int
        Decode is split so that all slots end together, into pieces of at most so many keys when it
        is alone, and beside prefill.
    taper_decode : bool
        Beside prefill, what is handed out last of decode is split finer: lanes of unlike speed do
        not end together by themselves.
    costs : SplitCosts
        What the rules of splitting weigh.
    max_partial_rows : int or None
        Most rows of partial results, per KV head (`Plan.partial_rows`): where the rules above would
        need more, splits are coarser. Tiles in one piece need none, so any number can be kept.
        None sets no bound.
    key_sharing : KeySharing or None
        By what prefill is ordered so that tiles which run at once share keys (`podrt.plan.order`);
        None orders it by length alone.
    request_cuts : RequestCuts or None
        Each request is cut by itself, and what is said above of splits and of their bound is not
        heeded (`podrt.plan.by_request`); None cuts the batch as a whole.
    """

    prefill_rows: int
    decode_rows: int
    prefill_kv_tile: int
    decode_kv_tile: int
    prefill_slots: int
    decode_slots: int
    min_prefill_keys: int
    min_decode_keys: int
    prefill_waves: int | None
    decode_piece_keys: int
    fused_piece_keys: int
    taper_decode: bool
    costs: SplitCosts
    max_partial_rows: int | None = None
    key_sharing: KeySharing | None = None
    request_cuts: RequestCuts | None = None


def partial_rows_within(num_bytes: int, num_kv_heads: int, value_dim: int) -> int:
    """Return how many rows of partial outputs, per KV head, fit into so much memory.

    Parameters
    ----------
    num_bytes : int
        Bytes of `partial_o`, float32 ``[rows, num_kv_heads, value_dim]``.
    num_kv_heads, value_dim : int
        KV heads, and elements of a head of the values.
    """
    return num_bytes // (num_kv_heads * value_dim * _FLOAT_BYTES)
