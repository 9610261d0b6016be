"""Shared memory by buffer is all of a variant's shared memory."""

from __future__ import annotations

import pytest

from podrt.explore.select import select

_BY_FAMILY = {"portable": ["PrefillQ", "DecodeRings"], "hopper": ["Q", "FirstLane"]}


@pytest.mark.parametrize("family", _BY_FAMILY)
@pytest.mark.parametrize("form", ["pod", "prefill", "decode"])
def test_buffers_cover_what_a_cta_is_given(family, form):
    for config in select(archs=["sm_90a"], families=[family], forms=[form]):
        buffers = config.smem_buffers
        assert [b.offset_bytes for b in buffers] == sorted(b.offset_bytes for b in buffers)
        end = 0
        for buffer in buffers:
            assert buffer.size_bytes > 0
            assert buffer.offset_bytes <= end  # no hole
            end = max(end, buffer.offset_bytes + buffer.size_bytes)
        assert end == config.smem_bytes
        names = {buffer.name for buffer in buffers}
        prefill, decode = _BY_FAMILY[family]
        assert (prefill in names, decode in names) == (config.has_prefill, config.has_decode)


def test_lanes_of_a_fused_hopper_cta_lie_over_prefill_alone():
    for config in select(archs=["sm_90a"], families=["hopper"], forms=["pod"]):
        by_name = {buffer.name: buffer for buffer in config.smem_buffers}
        for lane in ("Lane1", "Lane2"):
            end = by_name[lane].offset_bytes + by_name[lane].size_bytes
            assert end <= by_name["FirstLane"].offset_bytes
