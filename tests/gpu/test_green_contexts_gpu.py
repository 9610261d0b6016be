"""Work on a part of the SMs stays there, launched or replayed, and computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from podrt.bench.case import Case
from podrt.bench.contenders import make_contender
from podrt.bench.green_contexts import partition
from podrt.bench.tensors import fetch, make_tensors
from podrt.gpu.device import current_device, load_cupy
from podrt.workloads.accuracy import tolerance_of

_WHERE = """
extern "C" __global__ void where(unsigned *sms) {
  unsigned id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  long long begin = clock64();
  while (clock64() - begin < 100000) {}
  if (threadIdx.x == 0) sms[blockIdx.x] = id;
}
"""
_CTAS = 4096


@pytest.mark.parametrize("num_sms", [64, 104])
@pytest.mark.parametrize("replayed", [False, True])
def test_a_part_of_the_sms_is_all_that_work_gets(num_sms, replayed):
    cupy = load_cupy()
    device = current_device()
    if device.num_sms <= num_sms:
        pytest.skip(f"{device.name} has {device.num_sms} SMs")
    parts = partition(device.ordinal, num_sms)
    assert parts[0].num_sms >= num_sms
    assert sum(part.num_sms for part in parts) <= device.num_sms
    kernel = cupy.RawKernel(_WHERE, "where")
    seen = []
    for part in parts:
        sms = cupy.full(_CTAS, 9999, "uint32")
        cupy.cuda.Device().synchronize()
        kernel.compile()
        with part.stream as stream:
            if replayed:
                stream.begin_capture()
                kernel((_CTAS,), (256,), (sms,))
                graph = stream.end_capture()
                graph.launch(stream)
            else:
                kernel((_CTAS,), (256,), (sms,))
            stream.synchronize()
        seen.append(set(sms.get().tolist()))
    assert [len(each) for each in seen] == [part.num_sms for part in parts]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("num_sms", [64, 112])
def test_a_graph_of_both_parts_replayed_elsewhere_stays_on_them(num_sms):
    """As a benchmark does it: captured from, and replayed on, a stream that has all SMs."""
    cupy = load_cupy()
    device = current_device()
    if device.num_sms <= num_sms:
        pytest.skip(f"{device.name} has {device.num_sms} SMs")
    part = partition(device.ordinal, num_sms)[0]
    kernel, sms = cupy.RawKernel(_WHERE, "where"), cupy.full(_CTAS, 9999, "uint32")
    kernel.compile()
    forked, joined = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        stream.record(forked)
        part.stream.wait_event(forked)
        with part.stream:
            kernel((_CTAS,), (256,), (sms,))
            part.stream.record(joined)
        stream.wait_event(joined)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    assert len(set(sms.get().tolist())) == part.num_sms


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("num_sms", [16, 72])
def test_both_sides_on_their_parts_give_what_the_reference_does(head_dim, num_sms):
    prefill, decode = ((700, 3000), (65, 65)), (5000, 1, 777) * 9
    case = Case("parts", 8, 2, head_dim, "bfloat16", 16, prefill, decode)
    tensors = make_tensors(case)
    expected = tensors.expected()
    with load_cupy().cuda.Stream(non_blocking=True) as stream:
        contender = make_contender(f"green-contexts={num_sms}", tensors)
        for _ in range(3):
            tensors.poison()
            contender.enqueue()
            found = fetch(tensors.out, expected.rows)
            assert expected.error_of(found) <= tolerance_of(case.dtype)
        stream.synchronize()
    assert np.isfinite(found.astype(np.float32)).all()
