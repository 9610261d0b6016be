"""Every constant that was measured rather than derived, with the GPU and the source of each.

Policies read these from a `Calibration`. Those of an H100 and an H200 are here; `record_of` chooses
between them, and what `podrt tune` has measured of the very GPU (`podrt.policy.tuned_costs`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from podrt.gpu.device import DeviceInfo
from podrt.plan import SplitCosts
from podrt.policy.constants import (
    Calibration,
    CoRun,
    Cuts,
    FusedForm,
    L2Use,
    LaunchCosts,
    SmSharing,
)
from podrt.policy.tuned_costs import load_costs

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
    least_cut_keys=0,
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
        min_prefill_keys=768,
        min_decode_keys=384,
        prefill_waves=1,
        decode_piece_keys=8192,
        fused_piece_keys=4096,
        taper_decode=True,
        costs=replace(_COSTS, least_cut_keys=2048),  # bench/results/h100/prefill-pieces.json
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
        f"{_HOPPER_NOTES}, items 9, 11, 34, 35 and 41",
        time_ratios=(0.2, 0.36, 0.6, 0.75, 0.95),
        best_shares=(0.0, 0.25, 0.13, 16.5 / 132, 0.0),
        short_decode_us=0.0,  # not measured
        short_share=0.0,
        prefill_first_share=0.0,  # not measured
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
#: hold prefill up. Four are what a wave of 128 units leaves idle. Where prefill is the longer side,
#: 16 SMs that begin with it keep its last wave from waiting for SMs that decode. Launches of 40 to
#: 60 us are over before decode beside prefill has filled the bus: 16 decode first.
H100 = replace(
    H200,
    sm_sharing=replace(
        H200.sm_sharing,
        gpu=_H100,
        source="design/prefill-order.md",
        time_ratios=(0.05, 0.1, 0.7, 0.9),
        best_shares=(0.0, 4.5 / 132, 4.5 / 132, 0.0),
        short_decode_us=40.0,
        short_share=16.5 / 132,
        prefill_first_share=16.5 / 132,
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
        fused_factor=1.05,
        read_gbs=(2919.0, 3072.0),
        fused_read_share=0.972,
        us_per_decoded_mb=15.3,
        drift=23.4,
    ),
)

#: By the speed of memory, in GB/s for each SM, which is what one Hopper GPU differs from another
#: in.
_MEASURED_SMS = 132
_BY_MEMORY = ((3352 / _MEASURED_SMS, H100), (4807 / _MEASURED_SMS, H200))
#: Speeds of memory whose ratio has a smaller logarithm than this are taken for the same.
_LIKE = 0.05

Kind = Literal["tuned", "shipped", "likest"]


@dataclass(frozen=True)
class Record:
    """The constants for a GPU, and whose they are.

    Attributes
    ----------
    calibration : Calibration
        The constants.
    kind : {"tuned", "shipped", "likest"}
        Whether `podrt tune` fitted its `launch_costs` to the GPU, or they were measured of one like
        it, or of the likest one that there is.
    """

    calibration: Calibration
    kind: Kind

    def __str__(self) -> str:
        """Say whose constants a prediction is from."""
        costs = self.calibration.launch_costs
        if self.kind == "tuned":
            return f"the record of this {costs.gpu} ({costs.source})"
        if self.kind == "shipped":
            return f"the shipped record of an {costs.gpu} ({costs.source})"
        return (
            f"the shipped record of an {costs.gpu}, the likest GPU with a record, scaled to the "
            f"speed of this one's memory ({costs.source})"
        )


def record_of(gpu: DeviceInfo) -> Record:
    """Return the constants for a GPU.

    Those that `podrt tune` has kept of it go first; all others, and what it does not fit, are of
    the measured GPU with the likest memory.
    """
    shipped, tuned = shipped_for(gpu), load_costs(gpu)
    if tuned is not None:
        return Record(replace(shipped, launch_costs=tuned.costs), "tuned")
    return Record(shipped, "shipped" if is_measured(gpu) else "likest")


def calibration_of(gpu: DeviceInfo) -> Calibration:
    """Return the constants for a GPU; `record_of` says whose they are."""
    return record_of(gpu).calibration


def shipped_for(gpu: DeviceInfo) -> Calibration:
    """Return the constants of the measured GPU with the likest memory.

    A GPU that is not as that one reads as large a share of what its own memory moves.
    """
    speed = gpu.memory_gbs / gpu.num_sms
    measured, likest = min(_BY_MEMORY, key=lambda entry: abs(math.log(entry[0] / speed)))
    if is_measured(gpu):
        return likest
    factor = gpu.memory_gbs / (measured * _MEASURED_SMS)
    first, second = likest.launch_costs.read_gbs
    costs = replace(likest.launch_costs, read_gbs=(factor * first, factor * second))
    return replace(likest, launch_costs=costs)


def is_measured(gpu: DeviceInfo) -> bool:
    """Tell whether a GPU's memory and SMs are as those of one that has a shipped record."""
    speed = gpu.memory_gbs / gpu.num_sms
    likest = min(abs(math.log(each / speed)) for each, _ in _BY_MEMORY)
    return likest < _LIKE and gpu.num_sms == _MEASURED_SMS
