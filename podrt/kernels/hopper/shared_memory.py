"""Shared memory of a Hopper CTA: the one description, which the kernels get as constants.

A region is listed where it lies, with its size; offsets follow. ``hopper/shared_memory.cuh`` has
the picture, and asserts that tiles and structs are as large as they are here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from podrt.kernels.arguments import PLAN_HEADER_BYTES
from podrt.kernels.variant import Form, SmemBuffer
from podrt.plan import WORK_ITEM
from podrt.spec.types import ELEMENT_BYTES, DType

#: Packed query rows of a prefill tile, and keys of a decode tile.
PREFILL_ROWS, DECODE_KEYS = 128, 64
#: Columns of a swizzled row.
BLOCK_COLUMNS = 64
#: Units that a producer hands over ahead of their use.
WORK_SLOTS = 2
#: A work item and its KV head, aligned for 16-byte accesses.
WORK_SLOT_BYTES = -(-(WORK_ITEM.itemsize + 4) // 16) * 16

_FLOAT_BYTES, _BARRIER_BYTES = 4, 8
_TWO_FLAGS_BYTES = 16  # two ints, and what keeps the next region aligned
_LANE_WARPS = 4


class Sizes(Protocol):
    """What the layout needs of a variant; `podrt.HopperConfig` says what each is."""

    @property
    def form(self) -> Form: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def value_dim(self) -> int: ...

    @property
    def decode_tile_rows(self) -> int: ...

    @property
    def kv_tile(self) -> int: ...

    @property
    def stages(self) -> int: ...

    @property
    def decode_slots(self) -> int: ...

    @property
    def next_decode_slots(self) -> int | None: ...

    @property
    def decode_tiles(self) -> int: ...

    @property
    def decode_columns(self) -> int: ...

    @property
    def lanes(self) -> int: ...

    @property
    def has_prefill(self) -> bool: ...

    @property
    def has_decode(self) -> bool: ...


class Region(NamedTuple):
    """Some memory that the kernels know by an offset: `k` and its name."""

    name: str
    size_bytes: int
    doc: str


def offsets_of(regions: tuple[Region, ...]) -> dict[str, int]:
    """Return the offset of every region, and as ``"End"`` that of what follows the last."""
    offsets, end = {}, 0
    for region in regions:
        offsets[region.name] = end
        end += region.size_bytes
    return offsets | {"End": end}


def cta_regions(config: Sizes) -> tuple[Region, ...]:
    """Return what a CTA has. Tiles come first: they must lie on 1024 bytes."""
    ring = config.stages * config.kv_tile if config.has_prefill else 0
    queries = PREFILL_ROWS if config.has_prefill else 0
    row = _row_bytes(config, config.head_dim)
    first, others = _lane_bytes(config)
    return (
        Region("Q", queries * row, "one prefill tile"),
        Region("K", ring * row, "prefill ring"),
        Region("V", ring * _row_bytes(config, config.value_dim), "prefill ring"),
        Region("FirstLane", first, "tiles of decode lane 0"),
        Region("OwnLanes", others, "of those that do not lie over the prefill tiles"),
        Region("Header", PLAN_HEADER_BYTES, "of the plan"),
        Region("Barriers", -(-_BARRIER_BYTES * len(barriers(config)) // 16) * 16, ""),
        Region("Work", WORK_SLOTS * WORK_SLOT_BYTES, "units of prefill"),
        Region("Flags", _TWO_FLAGS_BYTES, "which prefill warpgroup is last to arrive"),
        Region("LaneControl", config.lanes * offsets_of(lane_control(config))["End"], "by lane"),
    )


def lane_tiles(config: Sizes, slots: int) -> tuple[Region, ...]:
    """Return the tiles of a decode lane with a ring of so many slots."""
    row, rows = _row_bytes(config, config.head_dim), config.decode_tile_rows
    step = config.decode_tiles * DECODE_KEYS * ELEMENT_BYTES[config.dtype]
    return (
        Region("LaneQ", rows * row, "one decode tile"),
        Region("LaneP", rows * step, "its probabilities"),
        Region("LaneRing", slots * _slot_bytes(config), "tiles of K and V in turn"),
    )


def lane_control(config: Sizes) -> tuple[Region, ...]:
    """Return what a decode lane has besides its tiles."""
    sums = (_LANE_WARPS + 1) * config.decode_tile_rows * _FLOAT_BYTES
    work, ring = (_BARRIER_BYTES * n for n in (WORK_SLOTS, _most_slots(config)))
    return (
        Region("LaneWork", WORK_SLOTS * WORK_SLOT_BYTES, "units of decode"),
        Region("Reduce", sums, "float[5][decode_rows]: of each warp, then references"),
        Region("Outgrown", _TWO_FLAGS_BYTES, "int[2]: a sum has outgrown its reference"),
        Region("LaneWorkFull", work, "barriers"),
        Region("LaneWorkEmpty", work, ""),
        Region("RingFull", ring, ""),
        Region("RingEmpty", ring, ""),
    )


def barriers(config: Sizes) -> tuple[str, ...]:
    """Return the names of a CTA's own barriers, by number; those of a ring have one for a slot."""
    counts = {
        "QFull": 1,
        "QEmpty": 1,
        **dict.fromkeys(("KFull", "KEmpty", "VFull", "VEmpty"), config.stages),
        **dict.fromkeys(("WorkFull", "WorkEmpty"), WORK_SLOTS),
        "HandOver": 1,
    }
    return tuple(name for name, count in counts.items() for _ in range(count))


def next_slots(config: Sizes) -> int:
    """Return the depth of the rings of decode lanes 1 and 2, which share the prefill tiles."""
    if config.form != "pod":
        return config.decode_slots
    key, value = (_row_bytes(config, columns) for columns in (config.head_dim, config.value_dim))
    prefill = PREFILL_ROWS * key + config.stages * config.kv_tile * (key + value)
    half = prefill // (config.lanes - 1)
    room = (half - offsets_of(lane_tiles(config, 0))["End"]) // _slot_bytes(config)
    return room if config.next_decode_slots is None else min(room, config.next_decode_slots)


def smem_bytes(config: Sizes) -> int:
    """Return the dynamic shared memory of a CTA."""
    return offsets_of(cta_regions(config))["End"]


def smem_buffers(config: Sizes) -> tuple[SmemBuffer, ...]:
    """Return what a CTA has, with the decode lanes that lie over the prefill tiles."""
    regions = cta_regions(config)
    placed = [
        SmemBuffer(region.name, offset, region.size_bytes, region.doc)
        for region, offset in zip(regions, offsets_of(regions).values(), strict=False)
        if region.size_bytes
    ]
    if config.form == "pod":
        size_bytes = offsets_of(lane_tiles(config, next_slots(config)))["End"]
        doc = "over the prefill tiles when there is no prefill left"
        lanes = range(1, config.lanes)
        placed += [SmemBuffer(f"Lane{n}", (n - 1) * size_bytes, size_bytes, doc) for n in lanes]
    return tuple(sorted(placed, key=lambda buffer: buffer.offset_bytes))


def render_layout(config: Sizes) -> str:
    """Return the layout as constants of a C++ struct: offsets in bytes, barriers by number."""
    cta, control = cta_regions(config), lane_control(config)
    tiles = lane_tiles(config, next_slots(config))
    lines = [
        f"  static constexpr int k{region.name} = {offset};"
        + f"  // {region.doc}" * bool(region.doc)
        for regions in (cta, tiles, control)
        for region, offset in zip(regions, offsets_of(regions).values(), strict=False)
    ]
    names = barriers(config)
    over_prefill = config.form == "pod"
    sizes = {
        "NextLanes": offsets_of(cta)["Q" if over_prefill else "OwnLanes"],
        "NextLaneBytes": offsets_of(tiles)["End"],
        "NextSlots": next_slots(config),
        "MaxSlots": _most_slots(config),
        "LaneControlBytes": offsets_of(control)["End"],
        "WorkSlots": WORK_SLOTS,
        "WorkSlotBytes": WORK_SLOT_BYTES,
        **{name: names.index(name) for name in dict.fromkeys(names)},
    }
    lines += [f"  static constexpr int k{name} = {value};" for name, value in sizes.items()]
    return "\n".join(("struct Layout {", *lines, "};"))


def _lane_bytes(config: Sizes) -> tuple[int, int]:
    """Return the tiles of decode lane 0, and of the other lanes that have memory of their own."""
    if not config.has_decode:
        return 0, 0
    first = offsets_of(lane_tiles(config, config.decode_slots))["End"]
    return first, 0 if config.has_prefill else (config.lanes - 1) * first


def _slot_bytes(config: Sizes) -> int:
    return DECODE_KEYS * _row_bytes(config, config.decode_columns)


def _row_bytes(config: Sizes, columns: int) -> int:
    """Return what a row of so many columns takes: tiles are whole blocks of `BLOCK_COLUMNS`."""
    return -(-columns // BLOCK_COLUMNS) * BLOCK_COLUMNS * ELEMENT_BYTES[config.dtype]


def _most_slots(config: Sizes) -> int:
    return max(config.decode_slots, next_slots(config))
