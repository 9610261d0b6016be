"""Work on a device that is not the current one; needs two GPUs."""

import pytest
from attention_case import Case, poisoned, run
from gpu_support import bits, busy_maker, inputs_on_gpu, skip_with_one_gpu, to_torch

from podrt import HybridAttention, hybrid_attention

cupy = pytest.importorskip("cupy")

TURNS = 40


@pytest.fixture(autouse=True)
def two_gpus():
    skip_with_one_gpu()
    with cupy.cuda.Device(0):
        yield


@pytest.fixture(params=["auto", "portable"])
def policy(request):
    return request.param


def test_tensors_decide_the_device(policy):
    case = Case([1, 50], [700, 90], seed=60)
    with cupy.cuda.Device(1):
        inputs = inputs_on_gpu(case)
        table = cupy.asarray(case.block_table)
    out = hybrid_attention(*inputs, *case.lengths, block_table=table, policy=policy)
    assert out.device.id == 1
    assert cupy.cuda.runtime.getDevice() == 0
    case.check(out.get())


@pytest.mark.parametrize("host_table", [True, False])
@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_plans_are_ordered_with_runs_on_the_null_stream(policy, framework, host_table):
    """A plan must wait for the run before it, which waits behind other work."""
    cases = [Case([1, 40, 1], [4000, 900, 70], seed=1), Case([30, 2, 9], [40, 3000, 500], seed=2)]
    with cupy.cuda.Device(1):
        busy = busy_maker()
        attention = HybridAttention(**cases[0].layer_arguments, policy=policy, device=1)
        expected = [bits(run(case, attention, strided=False)[0]) for case in cases]
    turns = [placed(case, framework, host_table) for case in cases]
    outs = []
    for turn in range(TURNS):
        lengths, table, inputs, make_out = turns[turn % 2]
        if turn % 8 == 0:
            with cupy.cuda.Device(1):
                busy()
        attention.plan(*lengths, block_table=table)
        outs.append(attention.run(*inputs, out=make_out()))
    with cupy.cuda.Device(1):
        cupy.cuda.Device(1).synchronize()
        for turn, out in enumerate(outs):
            got = cupy.from_dlpack(out.view(torch_int16())) if framework == "torch" else out
            assert (bits(got) == expected[turn % 2]).all(), turn
    assert cupy.cuda.runtime.getDevice() == 0


def torch_int16():
    import torch

    return torch.int16


def placed(case, framework, host_table):
    """Return lengths, page table, inputs and a maker of poisoned outputs, on GPU 1."""
    if framework == "torch":
        torch = pytest.importorskip("torch")
        inputs = [to_torch(array, "cuda:1") for array in (case.q, case.k_cache, case.v_cache)]
        table = torch.from_numpy(case.block_table)
        table = table if host_table else table.to("cuda:1")
        return case.lengths, table, inputs, lambda: torch.full_like(inputs[0], torch.nan)
    with cupy.cuda.Device(1):
        inputs = inputs_on_gpu(case)
        table = case.block_table if host_table else cupy.asarray(case.block_table)

    def make_out():
        with cupy.cuda.Device(1):
            return poisoned(case.q.shape, case.q.dtype)

    return case.lengths, table, inputs, make_out


def test_graphs_on_another_device(policy):
    case = Case([1, 40, 1], [4000, 900, 70], seed=1)
    attention = HybridAttention(**case.layer_arguments, policy=policy, device=1)
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream(non_blocking=True)
        inputs, table = inputs_on_gpu(case), cupy.asarray(case.block_table)
        out = poisoned(case.q.shape, case.q.dtype)
        cupy.cuda.Device().synchronize()
    limits = {"max_requests": 8, "max_tokens": 64, "max_kv_len": 4096}
    attention.reserve(**limits, stream=stream)
    with cupy.cuda.Device(1), stream:
        stream.begin_capture()
        attention.run(*inputs, out=out, stream=stream)
        graph = stream.end_capture()
    attention.plan(*case.lengths, block_table=table, stream=stream)
    with cupy.cuda.Device(1), stream:
        graph.launch(stream)
        case.check(out.get())
