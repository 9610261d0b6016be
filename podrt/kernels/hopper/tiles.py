"""What a Hopper variant means for planning: its tiles, and how many units run at once."""

from __future__ import annotations

import math

from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.shared_memory import DECODE_KEYS, PREFILL_ROWS
from podrt.kernels.variant import TileGeometry


def tile_tokens(group: int) -> int:
    """Tokens of a prefill tile, whose rows are all query heads of a KV head for each of them."""
    return PREFILL_ROWS // group


def geometry_of(config: HopperConfig, group: int, num_sms: int) -> TileGeometry:
    """Return the tiles of a variant for `group` query heads per KV head, on so many SMs."""
    return TileGeometry(
        prefill_rows=tile_tokens(group) * group,
        decode_rows=config.decode_rows,
        # Splits begin where a TMA load can, whatever the form that runs the plan.
        prefill_kv_tile=math.lcm(config.kv_tile, DECODE_KEYS),
        decode_kv_tile=DECODE_KEYS * config.decode_tiles,
        prefill_slots=num_sms,
        # Two of an SM's three decode lanes are enough to fill the memory bus. Planners count heads.
        decode_slots=2 * num_sms * config.decode_heads,
    )
