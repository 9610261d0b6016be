"""Every constant that was measured rather than derived, with the GPU and the source of each.

Policies read these from a `Calibration`; a GPU that is measured gets one of its own, and
`calibration_of` chooses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from podrt.gpu.device import DeviceInfo
from podrt.plan import SplitCosts


@dataclass(frozen=True)
class Measured:
    """Where constants come from.

    Attributes
    ----------
    gpu : str
        What they were measured on.
    source : str
        Where the measurements are told of.
    """

    gpu: str
    source: str


@dataclass(frozen=True)
class Cuts(Measured):
    """How far the keys of tiles are cut (split-KV), of one kernel family.

    Attributes
    ----------
    min_prefill_keys, min_decode_keys : int
        No piece is to be shorter: starting and merging it costs more than it saves.
    prefill_waves : int or None
        Most waves that prefill is cut into where it leaves SMs idle; None: no such limit.
    decode_piece_keys, fused_piece_keys : int
        Most keys of a piece of decode, alone and beside prefill, where slots are of unlike speed:
        short enough for them to end together, long enough for starting and merging not to count.
    taper_decode : bool
        Beside prefill, what is handed out last of decode is cut finer.
    costs : SplitCosts
        What starting units and merging pieces cost.
    """

    min_prefill_keys: int
    min_decode_keys: int
    prefill_waves: int | None
    decode_piece_keys: int
    fused_piece_keys: int
    taper_decode: bool
    costs: SplitCosts


@dataclass(frozen=True)
class FusedForm(Measured):
    """When the Hopper family's sides do better apart, and which tiles they get.

    Attributes
    ----------
    not_worth_hiding : float
        Decode with fewer keys than this share of prefill's is launched apart, if prefill alone has
        larger tiles for its units: they gain more than a decode hidden behind prefill.
    long_prefill_keys : int
        Least keys of prefill, over all units, for that.
    long_unit_keys : int
        From so many keys a unit, in the mean, prefill alone takes the larger tiles: queries are
        read from shared memory less often, and a unit takes longer to begin and to end.
    covered_decodes : float
        Share of the decodes that a decode tile must hold; the others are taken as prefills.
    """

    not_worth_hiding: float
    long_prefill_keys: int
    long_unit_keys: int
    covered_decodes: float


@dataclass(frozen=True)
class SmSharing(Measured):
    """What `podrt.policy.sm_allocation` knows of the Hopper family's speed on one SM.

    Attributes
    ----------
    time_ratios, best_shares : tuple of float
        Prefill time over decode time, each alone, and the share of the SMs that then did best when
        they decoded alone.
    prefill_tflops_per_sm, decode_gbs_per_sm : float
        What one SM reaches: prefill alone, and reading keys and values with all lanes.
    most_prefill : float
        Most that prefill may take on the SMs that are left, alone, in terms of decode's time:
        beside decode it takes a fifth longer, and it should not outlast it by much.
    read_efficiency : float
        Share of the memory's nominal bandwidth that reading reaches.
    fused_slowdown : float
        By how much the SMs' lower clock prolongs prefill when the other side works too.
    us_per_decoded_mb : float
        By how much a megabyte decoded on the same SM prolongs prefill there.
    beside_gbs_per_sm, beside_bus_share : float
        What one SM decodes beside prefill, at most a share of what reading reaches.
    """

    time_ratios: tuple[float, ...]
    best_shares: tuple[float, ...]
    prefill_tflops_per_sm: float
    decode_gbs_per_sm: float
    most_prefill: float
    read_efficiency: float
    fused_slowdown: float
    us_per_decoded_mb: float
    beside_gbs_per_sm: float
    beside_bus_share: float


@dataclass(frozen=True)
class L2Use(Measured):
    """What the order of prefill counts on (`podrt.plan.order`).

    Attributes
    ----------
    resident_share : float
        Share of L2 in which keys stay, beside decode, from one prefill tile to the next.
    """

    resident_share: float


@dataclass(frozen=True)
class CoRun(Measured):
    """What sharing the SMs costs a synthetic kernel at best.

    Attributes
    ----------
    shares : tuple of float
        Shorter side over longer side, by their times alone.
    decode_longer, prefill_longer : tuple of float
        Time of both over the longer side alone, where decode is the longer side and where prefill
        is.
    """

    shares: tuple[float, ...]
    decode_longer: tuple[float, ...]
    prefill_longer: tuple[float, ...]


@dataclass(frozen=True)
class LaunchCosts(Measured):
    """What `podrt.policy.cost` predicts the Hopper family's launches from.

    Pairs are for head_dim 64 and 128.

    Attributes
    ----------
    launch_us, unit_us : float
        What a launch and a unit of prefill take whatever their keys.
    prefill_merge_us, decode_merge_us : float
        What merging split tiles adds to a launch.
    prefill_tflops_per_sm : (float, float)
        What one SM reaches, prefill alone.
    large_tile_factor, fused_factor : float
        Time of a key of prefill with the larger tiles, and with those of a fused launch at its
        clock, over that of prefill alone.
    read_gbs : (float, float)
        What reading keys and values reaches, all SMs together.
    fused_read_share : float
        Share of it that a fused launch reaches.
    us_per_decoded_mb : float
        By how much a megabyte decoded on the same SM prolongs prefill there.
    drift : float
        Where some SMs decode first, tiles of prefill fall out of step: what they read again grows
        by so many times itself, times the share of those SMs.
    """

    launch_us: float
    unit_us: float
    prefill_merge_us: float
    decode_merge_us: float
    prefill_tflops_per_sm: tuple[float, float]
    large_tile_factor: float
    fused_factor: float
    read_gbs: tuple[float, float]
    fused_read_share: float
    us_per_decoded_mb: float
    drift: float


@dataclass(frozen=True)
class Calibration:
    """All that is measured of one GPU, or taken from another one."""

    portable_cuts: Cuts
    hopper_cuts: Cuts
    fused_form: FusedForm
    sm_sharing: SmSharing
    l2_use: L2Use
    co_run: CoRun
    launch_costs: LaunchCosts


_H200, _H100 = "NVIDIA H200", "NVIDIA H100"
_HOPPER_NOTES = "bench/results/h200/NOTES.md"
#: Fitted to the Hopper family, and taken for the portable one too.
_COSTS = SplitCosts(
    start_keys=128,
    split_keys=8,
    merge_keys=256,
    near_best=1.08,
    worth_cutting=0.88,
    max_idle_prefill=0.2,
)

H200 = Calibration(
    portable_cuts=Cuts(
        _H200,
        "design/portable-kernel.md, design/paper-reproduction.md",
        min_prefill_keys=384,
        min_decode_keys=128,
        prefill_waves=1,
        decode_piece_keys=4096,
        fused_piece_keys=4096,
        taper_decode=False,
        costs=_COSTS,
    ),
    hopper_cuts=Cuts(
        _H200,
        f"{_HOPPER_NOTES}, items 10, 18, 21, 28 and 37",
        min_prefill_keys=1024,
        min_decode_keys=384,
        prefill_waves=1,
        decode_piece_keys=8192,
        fused_piece_keys=4096,
        taper_decode=True,
        costs=_COSTS,
    ),
    fused_form=FusedForm(
        _H200,
        f"{_HOPPER_NOTES}, item 36",
        not_worth_hiding=0.04,
        long_prefill_keys=10_000_000,
        long_unit_keys=4096,
        covered_decodes=0.9,
    ),
    sm_sharing=SmSharing(
        _H200,
        f"{_HOPPER_NOTES}, items 9, 11, 34 and 35",
        time_ratios=(0.2, 0.36, 0.6, 0.75),
        best_shares=(0.0, 0.25, 0.13, 0.0),
        prefill_tflops_per_sm=6.0,
        decode_gbs_per_sm=85.0,
        most_prefill=0.92,
        read_efficiency=0.92,
        fused_slowdown=1.12,
        us_per_decoded_mb=2.5,
        beside_gbs_per_sm=24.6,
        beside_bus_share=0.8,
    ),
    l2_use=L2Use(
        _H100,
        "design/prefill-order.md",
        resident_share=0.3,  # 16 MB of 50 MiB
    ),
    co_run=CoRun(
        _H100,
        "design/benchmark.md",
        shares=(0.0, 0.25, 0.5, 0.75, 1.0),
        decode_longer=(1.0, 1.01, 1.02, 1.08, 1.24),
        prefill_longer=(1.0, 1.07, 1.13, 1.19, 1.24),
    ),
    launch_costs=LaunchCosts(
        _H200,
        "design/cost-model.md",
        launch_us=8.3,
        unit_us=3.65,
        prefill_merge_us=5.4,
        decode_merge_us=2.4,
        prefill_tflops_per_sm=(4.27, 6.28),
        large_tile_factor=1.01,
        fused_factor=1.0,
        read_gbs=(4286.0, 4472.0),
        fused_read_share=0.943,
        us_per_decoded_mb=13.4,
        drift=6.3,
    ),
)


#: As the H200's, but for what was measured of an H100, whose memory is slower: with prefill in an
#: order that shares keys, the bus is full whatever the SMs do, and more than a few of them only
#: hold prefill up. Four are what a wave of 128 units leaves idle.
H100 = replace(
    H200,
    sm_sharing=replace(
        H200.sm_sharing,
        gpu=_H100,
        source="design/prefill-order.md",
        time_ratios=(0.1, 0.2, 0.7, 0.9),
        best_shares=(0.0, 4.5 / 132, 4.5 / 132, 0.0),
    ),
    launch_costs=LaunchCosts(
        _H100,
        "design/cost-model.md",
        launch_us=7.8,
        unit_us=3.37,
        prefill_merge_us=7.3,
        decode_merge_us=2.4,
        prefill_tflops_per_sm=(4.24, 6.05),
        large_tile_factor=0.975,
        fused_factor=1.165,
        read_gbs=(2919.0, 3072.0),
        fused_read_share=0.972,
        us_per_decoded_mb=9.6,
        drift=23.4,
    ),
)

#: By the speed of memory, in GB/s for each SM, which is what one Hopper GPU differs from another
#: in.
_MEASURED_SMS = 132
_BY_MEMORY = ((3352 / _MEASURED_SMS, H100), (4807 / _MEASURED_SMS, H200))
#: Speeds of memory whose ratio has a smaller logarithm than this are taken for the same.
_LIKE = 0.05


def calibration_of(gpu: DeviceInfo) -> Calibration:
    """Return the constants for a GPU: those of the measured one with the likest memory."""
    speed = gpu.memory_gbs / gpu.num_sms
    return min(_BY_MEMORY, key=lambda entry: abs(math.log(entry[0] / speed)))[1]


def is_measured(gpu: DeviceInfo) -> bool:
    """Tell whether a GPU's memory and SMs are as one's that was measured: the record is its own."""
    speed = gpu.memory_gbs / gpu.num_sms
    likest = min(abs(math.log(each / speed)) for each, _ in _BY_MEMORY)
    return likest < _LIKE and gpu.num_sms == _MEASURED_SMS
