"""CUDA graphs of objects without reserved buffers: each holds the batch it was captured with."""

import gc
from contextlib import suppress

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from gpu_support import POISON, bits, busy_maker, inputs_on_gpu

from podrt import HybridAttention, hybrid_attention

cupy = pytest.importorskip("cupy")

#: Long keys and few requests: both sides are split, merged, and need counters.
LENGTHS = [1, 40, 2, 1], [9000, 3000, 700, 16]


@pytest.fixture(params=["auto", "portable"])
def policy(request):
    return request.param


@pytest.fixture
def stream():
    return cupy.cuda.Stream(non_blocking=True)


def captured(attention, inputs, out, stream):
    """Capture two layers; everything that was enqueued before is done."""
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        for _ in range(2):
            attention.run(*inputs, out=out, stream=stream)
        return stream.end_capture()


def replayed(graph, out, stream):
    with stream:
        out.view(np.uint16).fill(POISON)
        graph.launch(stream)
        return out.get()


def overwrite_free_memory():
    """Fill what CuPy's pool has free with bytes that are no page, no length and no item."""
    gc.collect()
    junk = [cupy.full(size, 0xA5, np.uint8) for size in (512, 4096, 65536, 1 << 20, 1 << 24) * 4]
    cupy.cuda.Device().synchronize()
    return junk


@pytest.mark.parametrize("table_on", ["gpu", "host"])
def test_a_graph_keeps_what_it_reads(policy, stream, table_on):
    """The batch's page table and the buffers of its plan, once the object has other ones."""
    case, other = Case(*LENGTHS, seed=30), Case([3, 1, 90], [400, 2000, 5000], seed=31)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    table = cupy.asarray(case.block_table) if table_on == "gpu" else case.block_table.copy()
    attention.plan(*case.lengths, block_table=table)
    inputs, out = inputs_on_gpu(case), poisoned(case.q.shape, case.q.dtype)
    graph = captured(attention, inputs, out, stream)
    del table
    other.check(*run(other, attention))  # plans the same object anew
    junk = overwrite_free_memory()
    for _ in range(3):
        case.check(replayed(graph, out, stream))
    assert junk


def test_hybrid_attention_under_capture_is_refused(stream):
    """Its work space would be gone when the graph is replayed."""
    case = Case(*LENGTHS, seed=32)
    inputs, out = inputs_on_gpu(case), poisoned(case.q.shape, case.q.dtype)
    table = cupy.asarray(case.block_table)
    hybrid_attention(*inputs, *case.lengths, block_table=table)  # compiled and loaded
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="captur"):
            hybrid_attention(*inputs, *case.lengths, block_table=table, out=out)
        end_capture(stream)
    result = hybrid_attention(*inputs, *case.lengths, block_table=table, out=out)
    case.check(result.get())


def test_plan_on_a_capturing_stream_is_refused(policy, stream):
    case, other = Case(*LENGTHS, seed=33), Case([1], [50], seed=34)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    table = cupy.asarray(case.block_table)
    attention.plan(*case.lengths, block_table=table)
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="captur"):
        attention.plan(*other.lengths, block_table=other.block_table, stream=stream)
    end_capture(stream)
    case.check(attention.run(*inputs_on_gpu(case)).get())  # the plan before is still there


def end_capture(stream):
    # A broken-off capture is an error; the stream is out of it all the same.
    with suppress(cupy.cuda.runtime.CUDARuntimeError):
        stream.end_capture()


def test_output_of_a_captured_run_stays_the_graphs(policy, stream):
    """Or the run is refused: its message names `out`."""
    case = Case(*LENGTHS, seed=35)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    inputs = inputs_on_gpu(case)
    attention.run(*inputs)
    cupy.cuda.Device().synchronize()
    refusal = None
    with stream:
        stream.begin_capture()
        try:
            attention.run(*inputs, stream=stream)  # nobody holds what it returns
        except (RuntimeError, ValueError) as error:
            refusal = str(error)
            end_capture(stream)
        else:
            graph = stream.end_capture()
    if refusal is not None:
        assert "out" in refusal
        return
    with stream:
        junk = [cupy.full(case.q.nbytes, 0xA5, np.uint8) for _ in range(8)]
        graph.launch(stream)
        assert all((array.get() == 0xA5).all() for array in junk)


@pytest.mark.parametrize("objects", [1, 2])
def test_graphs_captured_on_one_stream_replay_side_by_side(policy, stream, objects):
    """Launches at the same time need counters and partial results of their own."""
    case = Case(*LENGTHS, seed=36)
    table, inputs = cupy.asarray(case.block_table), inputs_on_gpu(case)
    attentions = [HybridAttention(**case.layer_arguments, policy=policy) for _ in range(objects)]
    for attention in attentions:
        attention.plan(*case.lengths, block_table=table)
    expected = bits(attentions[0].run(*inputs))
    case.check(expected.view(case.q.dtype))
    outs = [poisoned(case.q.shape, case.q.dtype) for _ in range(2)]
    graphs = [captured(attentions[i % objects], inputs, outs[i], stream) for i in range(2)]
    busy, streams = busy_maker(), [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for _ in range(10):
        for out, other in zip(outs, streams, strict=True):
            with other:
                out.view(np.uint16).fill(POISON)
        busy()
        gate = cupy.cuda.get_current_stream().record()
        for other in streams:
            other.wait_event(gate)  # both start when the same wait is over
        for _ in range(10):
            for graph, other in zip(graphs, streams, strict=True):
                graph.launch(other)
        for out, other in zip(outs, streams, strict=True):
            with other:
                assert (bits(out) == expected).all()


def test_a_graph_beside_ordinary_runs(policy, stream):
    case = Case(*LENGTHS, seed=37)
    inputs = inputs_on_gpu(case)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    expected = bits(attention.run(*inputs))
    out, eager = (poisoned(case.q.shape, case.q.dtype) for _ in range(2))
    graph = captured(attention, inputs, out, stream)
    replaying, running = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    for _ in range(50):
        graph.launch(replaying)
        attention.run(*inputs, out=eager, stream=running)
    replaying.synchronize()
    running.synchronize()
    assert (bits(out) == expected).all()
    assert (bits(eager) == expected).all()


def test_plans_and_runs_beside_a_capture_on_another_stream(policy, stream):
    """In the global mode a capture is spoiled by calls that have nothing to do with it."""
    case, other = Case(*LENGTHS, seed=39), Case([3, 1, 90], [400, 2000, 5000], seed=40)
    inputs, out = inputs_on_gpu(case), poisoned(case.q.shape, case.q.dtype)
    attentions = [HybridAttention(**case.layer_arguments, policy=policy) for _ in range(2)]
    attentions[0].plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    other_inputs = inputs_on_gpu(other)
    table, other_out = cupy.asarray(other.block_table), poisoned(other.q.shape, other.q.dtype)
    beside = cupy.cuda.Stream(non_blocking=True)
    attentions[1].plan(*other.lengths, block_table=table, stream=beside)
    cupy.cuda.Device().synchronize()
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    attentions[0].run(*inputs, out=out, stream=stream)
    for _ in range(3):
        attentions[1].plan(*other.lengths, block_table=table, stream=beside)
        attentions[1].run(*other_inputs, out=other_out, stream=beside)
    graph = stream.end_capture()
    beside.synchronize()
    other.check(other_out.get())
    case.check(replayed(graph, out, stream))


def test_many_streams_do_not_take_ever_more_memory(policy):
    case = Case(*LENGTHS, seed=38)
    inputs = inputs_on_gpu(case)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    out, pool = poisoned(case.q.shape, case.q.dtype), cupy.get_default_memory_pool()
    expected = bits(attention.run(*inputs))
    before, streams, used = pool.used_bytes(), [], []
    for _ in range(3):
        for _ in range(100):
            streams.append(cupy.cuda.Stream(non_blocking=True))
            attention.run(*inputs, out=out, stream=streams[-1])
            streams[-1].synchronize()
        used.append(pool.used_bytes() - before)
    assert used[2] <= 1.5 * used[0] + (1 << 20), used
    attention.run(*inputs, out=out, stream=streams[0])
    streams[0].synchronize()
    assert (bits(out) == expected).all()
