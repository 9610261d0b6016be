"""The launches that the cost model is fitted to: a designed set, each for a constant or two."""

from __future__ import annotations

from podrt.bench.case import Case
from podrt.spec.attention import make_spec
from podrt.workloads.lengths import parse_heads, parse_lengths

ALONE = ("auto",)
#: Shares of the SMs that tell apart what the bus, the SMs and the order of prefill cost.
FUSED = ("hopper", "decode-only=0", "decode-only=4", "decode-only=16", "prefill-only=8", "serial")
FEW = ("decode-only=0", "decode-only=8", "serial")

#: Heads, head_dim, lengths, policies. Of neighbours one is fitted to and one held out in turn.
_SET = (
    # Decode alone: a launch, merging, reading.
    ("32/8", 128, "4x2048", ALONE),
    ("32/8", 128, "8x2048", ALONE),
    ("32/8", 128, "32x4096", ALONE),
    ("32/4", 128, "96x4096", ALONE),
    ("32/8", 128, "64x8192", ALONE),
    ("8/1", 128, "256x8192", ALONE),
    ("32/8", 128, "2x32768", ALONE),
    ("16/4", 128, "4x32768", ALONE),
    ("32/8", 64, "64x8192", ALONE),
    ("16/16", 64, "32x8192", ALONE),
    ("32/8", 64, "8x4096", ALONE),
    ("32/8", 64, "16x2048", ALONE),
    # Prefill alone: a unit, a key, the larger tiles, merging.
    ("32/8", 128, "512@512", ALONE),
    ("32/8", 128, "1024@1024", ALONE),
    ("32/8", 128, "8x256@256", ALONE),
    ("16/16", 128, "16x256@512", ALONE),
    ("32/8", 128, "2048@2048", ALONE),
    ("16/4", 128, "4096@4096", ALONE),
    ("32/8", 128, "2048@16384", ALONE),
    ("32/4", 128, "1024@16384", ALONE),
    ("32/8", 128, "256@8192", ALONE),
    ("8/1", 128, "512@16384", ALONE),
    ("32/8", 64, "2048@2048", ALONE),
    ("16/16", 64, "1024@2048", ALONE),
    ("32/8", 64, "2048@16384", ALONE),
    ("16/4", 64, "1024@16384", ALONE),
    # Fused: the clock, the bus with both sides, decode on prefill's SMs, tiles out of step.
    ("32/8", 128, "2048@16384 + 64x8192", FUSED),
    ("32/8", 128, "2048@16384 + 92x8192", FUSED),
    ("32/8", 128, "1024@8192 + 64x8192", FUSED),
    ("32/4", 128, "2048@16384 + 128x8192", FUSED),
    ("32/8", 128, "4096@4096 + 64x4096", FEW),
    ("32/4", 128, "1024@16384 + 128x8192", FEW),
    ("32/8", 128, "512@4096 + 64x4096", FEW),
    ("16/4", 128, "1024@12288 + 80x8192", FEW),
    ("64/8", 128, "2048@16384 + 32x8192", FEW),
    ("32/8", 128, "2048@16384 + 24x8192", FEW),
    ("16/16", 128, "512@4096 + 32x4096", FEW),
    ("16/2", 128, "1024@8192 + 128x8192", FEW),
    ("32/8", 64, "2048@16384 + 64x8192", FEW),
    ("16/16", 64, "1024@8192 + 32x8192", FEW),
    # Little decode: prefill in a fused launch, which more of it cannot tell from decode's hold-up.
    ("32/8", 128, "2048@16384 + 8x4096", FEW),
    ("32/8", 128, "4096@8192 + 8x2048", FEW),
    ("32/8", 64, "2048@16384 + 8x4096", FEW),
    ("16/16", 64, "2048@8192 + 4x2048", FEW),
)


def designed_cases() -> tuple[Case, ...]:
    """Return the set, whose policies are all that is measured of each case."""
    return tuple(make_case(*entry) for entry in _SET)


def make_case(heads: str, head_dim: int, lengths: str, policies: tuple[str, ...]) -> Case:
    """Return a case in bfloat16 with pages of 16, of a batch as `parse_lengths` reads it."""
    layer = make_spec(*parse_heads(heads), head_dim, 16, "NHD", "bfloat16")
    name = f"{heads} d{head_dim}/{lengths}"
    return Case.of(parse_lengths(lengths), layer, name=name, policies=policies)
