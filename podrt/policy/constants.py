"""What was measured rather than derived, as types: the constants of one GPU.

`podrt.policy.calibration` has the values.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    short_decode_us, short_share : float
        Decode that alone takes less than that is over before memory is busy: at least that share of
        the SMs then decodes first, where prefill takes no longer than the last of `time_ratios`.
    prefill_first_share : float
        Share of the SMs that take prefill first, at least, where prefill takes longer than the last
        of `time_ratios`.
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
    short_decode_us: float
    short_share: float
    prefill_first_share: float
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


def weights_of(head_dim: int) -> tuple[float, float]:
    """Return by how much the constants of head_dim 64 and of 128 count for another one."""
    share = min(max((head_dim - 64) / 64, 0.0), 1.0)
    return 1 - share, share


@dataclass(frozen=True)
class LaunchCosts(Measured):
    """What `podrt.policy.cost` predicts the Hopper family's launches from.

    Pairs are for head_dim 64 and 128; head dims between them have what lies between (`weights_of`),
    and 128's serve for 192 and 256, of which nothing was measured.

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
