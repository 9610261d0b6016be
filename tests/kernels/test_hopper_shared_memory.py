"""Shared memory of a Hopper CTA: one description for host, device and documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from podrt.errors import CompileError
from podrt.jit import KernelSource, compile_source
from podrt.kernels.hopper.config import HopperConfig
from podrt.kernels.hopper.host import source_of
from podrt.kernels.hopper.presets import default_hopper_variants, hopper_variant
from podrt.kernels.hopper.shared_memory import (
    DECODE_KEYS,
    barriers,
    cta_regions,
    lane_control,
    lane_tiles,
    offsets_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def compile_layout(text: str) -> None:
    """Compile a source without its kernel."""
    before, _, _ = text.partition('extern "C"')
    before += "template struct SharedMemory<Config>;\n"
    text = before + 'extern "C" __global__ void layout() {}\n'
    compile_source(KernelSource(name="layout", arch="sm_90a", text=text, entry="layout"))


@pytest.mark.parametrize("form", ["pod", "prefill", "decode"])
@pytest.mark.parametrize(
    ("head_dim", "v_head_dim"),
    [(64, None), (80, None), (96, None), (128, None), (192, None), (192, 128)],
)
def test_tiles_are_as_large_on_the_device(form: str, head_dim: int, v_head_dim: int | None) -> None:
    config = hopper_variant(form, "bfloat16", head_dim, v_head_dim=v_head_dim)  # type: ignore[arg-type]
    source = source_of(config).text
    compile_layout(source)
    of_prefill = ("kV", "kFirstLane") if config.has_prefill else ()
    wrong = ("kNextLaneBytes", "kWorkSlotBytes", *of_prefill)
    for name in wrong:
        (value,) = re.findall(rf"constexpr int {name} = (\d+);", source)
        with pytest.raises(CompileError) as caught:
            compile_layout(source.replace(f"{name} = {value};", f"{name} = {int(value) + 16};"))
        assert "static assertion failed" in caught.value.log


@pytest.mark.parametrize(
    "config",
    [*default_hopper_variants(), *default_hopper_variants(head_dims=[192], v_head_dim=128)],
    ids=lambda config: config.name,
)
def test_regions_are_aligned_and_lanes_lie_in_them(config: HopperConfig) -> None:
    cta = offsets_of(cta_regions(config))
    assert cta["End"] == config.smem_bytes
    assert all(cta[tile] % 1024 == 0 for tile in ("Q", "K", "V", "FirstLane", "OwnLanes"))
    assert cta["Header"] % 64 == 0
    assert all(cta[name] % 16 == 0 for name in ("Barriers", "Work", "Flags", "LaneControl"))
    tiles = offsets_of(lane_tiles(config, config.next_slots))
    assert all(offset % 1024 == 0 for offset in tiles.values())
    if config.form == "pod":  # lanes 1 and 2 lie over the prefill tiles
        assert 2 * tiles["End"] <= cta["FirstLane"]
        assert 2 * (tiles["End"] + config.head_dim * DECODE_KEYS * 2) > cta["FirstLane"]
    control = offsets_of(lane_control(config))
    assert all(offset % 8 == 0 for offset in control.values())
    assert control["End"] % 16 == 0


def test_page_about_the_kernels_has_every_barrier() -> None:
    config = hopper_variant("pod", "bfloat16", 128)
    control = [region.name for region in lane_control(config)]
    of_lanes = [name for name in control if name.endswith(("Full", "Empty"))]
    assert len(of_lanes) == 4
    table = PAGE.read_text(encoding="utf-8").split("### Barriers")[1].split("### Softmax")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert listed == {*barriers(config), *of_lanes}
