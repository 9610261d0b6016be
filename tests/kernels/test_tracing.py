"""Instrumented builds: what is put in front of a source, and buffers of events."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from podrt.explore.select import select
from podrt.gpu.arch import ARCHS
from podrt.jit import KernelSource, build, compile_source
from podrt.kernels.families import all_default_variants, source_of
from podrt.kernels.tracing import (
    BUFFER_DTYPE,
    EVENT_DTYPE,
    TRACE_SYMBOL,
    empty_buffer,
    recorded,
    traced,
)

_CALLS = re.compile(r"^ *TRACE_(?:BEGIN|END|DRY)\(.*\);\n", re.MULTILINE)
_INCLUDE = '#include "common/trace.cuh"\n'


def variants():
    """Return a kernel of each form of the Hopper family, and a fused portable one."""
    filters = {"archs": ["sm_90a"], "dtypes": ["bfloat16"], "head_dims": [128]}
    filters["page_sizes"] = ["16"]
    forms = [("hopper", "pod"), ("hopper", "prefill"), ("hopper", "decode"), ("portable", "pod")]
    return [
        pytest.param(select(families=[family], forms=[form], **filters)[0], id=f"{family} {form}")
        for family, form in forms
    ]


def without_calls(source: KernelSource) -> KernelSource:
    """Return a source whose headers have never heard of traces."""
    bare = replace(source)
    headers = {
        name: _CALLS.sub("", text).replace(_INCLUDE, "")
        for name, text in source.headers
        if name != "common/trace.cuh"
    }
    object.__setattr__(bare, "headers", tuple(sorted(headers.items())))
    return bare


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("variant", variants())
def test_builds_that_are_not_instrumented_know_nothing_of_it(variant):
    source = source_of(variant)
    bare = without_calls(source)
    assert "trace" not in source.text.lower()
    assert bare.headers != source.headers
    assert not any("TRACE_" in text for _, text in bare.headers)
    assert build(source).cubin == compile_source(bare).cubin


@pytest.mark.parametrize("variant", variants())
def test_instrumented_builds_compile_and_spill_hardly_anything(variant):
    source = source_of(variant)
    instrumented = traced(source)
    assert instrumented.text.endswith(source.text)
    assert instrumented.entry == source.entry and instrumented.name != source.name
    build = compile_source(instrumented)
    assert TRACE_SYMBOL.encode() in build.cubin
    # The fused Hopper kernel keeps a few values from a unit's begin to its end; none in a loop.
    assert build.resources.spill_store_bytes <= 32
    assert build.resources.warnings == ()


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_no_source_of_a_variant_has_anything_of_traces_but_calls_that_are_empty(arch):
    headers = {}
    for variant in all_default_variants(arch, page_sizes=(None, 16), soft_caps=(False, True)):
        source = source_of(variant)
        assert "trace" not in source.text.lower()
        assert not any("TRACE" in option for option in source.options)
        headers.update(source.headers)
    own = headers.pop("common/trace.cuh")
    assert own.count("#ifdef PODRT_TRACE") == own.count("#else") == own.count("#endif") == 1
    otherwise = own[own.index("#else") : own.index("#endif")].splitlines()[1:]
    assert all(re.fullmatch(r"#define TRACE_[A-Z]+\(.*\)", line) for line in otherwise)
    for text in headers.values():
        assert "trace" not in _CALLS.sub("", text).replace(_INCLUDE, "").lower()


def test_events_are_read_from_a_buffer():
    buffer = empty_buffer(5)
    header, events = views(buffer)
    assert len(events) == 6 and header["room"] == 5  # and a place for what finds none
    assert len(recorded(buffer).events) == recorded(buffer).lost == 0
    events["sm"][:2] = 3, 4
    header["count"] = 2
    found = recorded(buffer)
    assert found.events["sm"].tolist() == [3, 4] and found.lost == 0


def test_events_without_room_are_counted():
    buffer = empty_buffer(8)
    header, _ = views(buffer)
    header["count"] = 11
    assert len(recorded(buffer).events) == 8 and recorded(buffer).lost == 3
    header["count"] = -1  # 2**32 - 1 on the device
    assert recorded(buffer).lost == 2**32 - 1 - 8


def views(buffer: np.ndarray):
    end = BUFFER_DTYPE.itemsize
    return buffer[:end].view(BUFFER_DTYPE)[0:1].reshape(()), buffer[end:].view(EVENT_DTYPE)
