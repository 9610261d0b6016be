"""What a portable variant means for planning: its tiles, and how many units run at once."""

from __future__ import annotations

from podrt.kernels.portable.config import KernelConfig
from podrt.kernels.variant import TileGeometry


def geometry_of(config: KernelConfig, num_sms: int) -> TileGeometry:
    """Return the tiles of a variant on so many SMs; they are the same whatever the group."""
    ctas = num_sms * config.ctas_per_sm
    return TileGeometry(
        prefill_rows=config.prefill.rows,
        decode_rows=config.decode.rows,
        prefill_kv_tile=config.prefill.kv_tile,
        decode_kv_tile=config.decode.kv_tile,
        prefill_slots=ctas,
        decode_slots=ctas * config.warps,
    )
