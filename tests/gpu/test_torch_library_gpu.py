"""Attention in compiled PyTorch models and their CUDA graphs, on a GPU."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np
import pytest
from attention_case import Case
from gpu_support import from_torch, to_torch
from readme import python_examples

from podrt import HybridAttention, hybrid_attention

torch = pytest.importorskip("torch")

from podrt.integrations import torch as integration  # noqa: E402

OPERATIONS = torch.ops.podrt
needs_triton = pytest.mark.skipif(
    not (shutil.which("cc") or shutil.which("gcc")), reason="Triton needs a C compiler"
)
#: Batches of 40 tokens over the same caches.
STEPS = [[1, 38, 1, 0], [1, 1, 1, 37], [10, 10, 10, 10]]
KV_LENS = [700, 90, 33, 800]


@pytest.fixture(autouse=True)
def compile_anew():
    torch._dynamo.reset()


def case_of(q_lens, seed=0):
    return Case(q_lens, KV_LENS, seed=seed)


def tensors(case):
    return [to_torch(array) for array in (case.q, case.k_cache, case.v_cache)]


def planned(case, attention=None):
    attention = attention or HybridAttention(**case.layer_arguments)
    attention.plan(*case.lengths, block_table=case.block_table)
    return integration.TorchAttention(attention)


def check(case, out, lse=None):
    dtype = np.dtype(ml_dtypes.bfloat16)
    case.check(from_torch(out, dtype), None if lse is None else lse.cpu().numpy())


class TestOperations:
    def test_run(self):
        case = case_of(STEPS[0])
        attend = planned(case)
        torch.library.opcheck(OPERATIONS.run.default, (*tensors(case), attend.handle))
        check(case, OPERATIONS.run(*tensors(case), attend.handle))

    def test_run_out(self):
        case = case_of(STEPS[0])
        attend, inputs = planned(case), tensors(case)
        out, lse = torch.empty_like(inputs[0]), torch.empty(inputs[0].shape[:2], device="cuda")
        torch.library.opcheck(OPERATIONS.run_out.default, (*inputs, attend.handle, out, lse))
        OPERATIONS.run_out(*inputs, attend.handle, out, lse)
        check(case, out, lse)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_hybrid_attention(self, device):
        case = case_of(STEPS[0])
        lengths = (torch.from_numpy(array).to(device) for array in case.lengths)
        table = torch.from_numpy(case.block_table).to(device)
        layout = table, None, None, "NHD", True, None, "auto"
        arguments = (*tensors(case), *lengths, *layout)
        torch.library.opcheck(OPERATIONS.hybrid_attention.default, arguments)
        check(case, *OPERATIONS.hybrid_attention(*arguments))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_triton)])
def test_compiled_model(backend):
    cases = [case_of(q_lens, seed) for seed, q_lens in enumerate(STEPS)]
    attention = HybridAttention(**cases[0].layer_arguments)
    attend = integration.TorchAttention(attention)

    @torch.compile(fullgraph=True, backend=backend)
    def layer(q, k, v):
        return attend(q * 1, k, v, return_lse=True)

    for case in cases:
        planned(case, attention)
        check(case, *layer(*tensors(case)))


def test_calls_of_both_kinds_go_to_the_current_stream():
    case = case_of(STEPS[0])
    attend, side = planned(case), torch.cuda.Stream()
    layer = torch.compile(attend, fullgraph=True, backend="aot_eager")
    inputs = tensors(case)
    late = torch.empty_like(inputs[0])
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late.copy_(inputs[0])
        outs = layer(late, *inputs[1:]), attend(late, *inputs[1:])
    side.synchronize()
    for out in outs:
        check(case, out)


def test_training_is_refused():
    case = case_of(STEPS[0])
    attend, (q, k, v) = planned(case), tensors(case)
    q.requires_grad_()
    layer = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for call in (attend, layer):
        with pytest.raises(RuntimeError, match="podrt has no backward pass"):
            call(q, k, v)
    with torch.no_grad():
        check(case, layer(q, k, v))


class Layer(torch.nn.Module):
    """Attention over caches whose addresses CUDA graphs may rely on."""

    def __init__(self, case, attend):
        super().__init__()
        self.attend = attend
        for name, array in (("k_cache", case.k_cache), ("v_cache", case.v_cache)):
            self.register_buffer(name, to_torch(array))

    def forward(self, q):
        return self.attend(q, self.k_cache, self.v_cache)


def reserved(case):
    attention = HybridAttention(**case.layer_arguments)
    attention.reserve(8, 64, 1024)
    return attention


class TestGraphs:
    def test_an_attention_that_is_not_reserved_refuses(self):
        case = case_of(STEPS[0])
        attend, inputs = planned(case), tensors(case)
        OPERATIONS.run(*inputs, attend.handle)
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match=r"call attention\.reserve"), torch.cuda.graph(graph):
            OPERATIONS.run(*inputs, attend.handle)
        check(case, OPERATIONS.run(*inputs, attend.handle))

    def test_captured_by_the_caller(self):
        cases = [case_of(q_lens, seed) for seed, q_lens in enumerate(STEPS)]
        attend = planned(cases[0], reserved(cases[0]))
        q, k, v = tensors(cases[0])
        layer = torch.compile(attend, fullgraph=True, backend="aot_eager")
        layer(q, k, v)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(q, k, v)
        for case in cases:
            for tensor, new in zip((q, k, v), tensors(case), strict=True):
                tensor.copy_(new)
            planned(case, attend.attention)
            graph.replay()
            check(case, out)

    def test_captured_by_torch_compile(self, monkeypatch):
        """Mode "reduce-overhead": warm-up, capture, and then replays, in which no Python runs."""
        cases = [case_of(q_lens, seed) for seed, q_lens in enumerate(STEPS * 3)]
        attention = reserved(cases[0])
        layer = Layer(cases[0], planned(cases[0], attention))
        step = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
        asked = []
        run = attention.run
        monkeypatch.setattr(attention, "run", lambda *a, **k: asked.append(1) or run(*a, **k))
        counts = []
        for case in cases:
            layer.k_cache.copy_(to_torch(case.k_cache))
            layer.v_cache.copy_(to_torch(case.v_cache))
            planned(case, attention)
            torch.compiler.cudagraph_mark_step_begin()
            with torch.inference_mode():
                check(case, step(to_torch(case.q)))
            counts.append(len(asked))
        assert counts[-1] == counts[3] < len(cases), "steps were not replayed"


@needs_triton
def test_the_page_gives_what_the_reference_does():
    (example,) = python_examples("docs/torch.md")
    names = {}
    exec(example, names)
    layer = names["layer"]
    with torch.inference_mode():
        q = layer.qkv(names["x"]).view(-1, 12, 64)[:, :8]
    caches = layer.k_cache, layer.v_cache
    table = np.array([[4, -1], [2, 9]], np.int32)
    expected = hybrid_attention(
        *(tensor.cpu() for tensor in (q, *caches)), [0, 3, 4], [3, 20], block_table=table
    )
    torch.testing.assert_close(names["out"].cpu(), expected.flatten(1), atol=2e-3, rtol=2e-3)


def test_the_jax_page_runs():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX has no CUDA")
    names = {}
    for example in python_examples("docs/jax.md"):
        exec(example, names)
        assert isinstance(names["out"], jax.Array)
        assert np.isfinite(np.asarray(names["out"], np.float32)).all()
