"""Attention in compiled PyTorch models, computed on the CPU by podrt's reference."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
from attention_support import KV_LENS, PAGE_SIZE, QO_INDPTR, Batch
from readme import python_examples

import podrt

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounter  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from podrt.integrations.torch import TorchAttention, hybrid_attention  # noqa: E402

BATCH = Batch()
LAYER = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64, "dtype": "float16"}
OPERATIONS = torch.ops.podrt
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler for inductor"),
    ),
]


@pytest.fixture(autouse=True)
def compile_anew():
    torch._dynamo.reset()


def tensors():
    return [torch.from_numpy(array.copy()) for array in (BATCH.q, BATCH.k_pages, BATCH.v_pages)]


def attention():
    attention = podrt.HostAttention(**LAYER, page_size=PAGE_SIZE)
    attention.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table)
    return TorchAttention(attention)


def tables():
    lengths = torch.from_numpy(QO_INDPTR), torch.from_numpy(BATCH.kv_lens)
    return *lengths, torch.from_numpy(BATCH.block_table)


def require_close(out, lse=None, factor=1):
    exact, exact_lse = BATCH.expected()
    np.testing.assert_allclose(out.double().numpy(), exact * factor, rtol=2e-3, atol=1e-4)
    if lse is not None:
        np.testing.assert_allclose(lse.numpy(), exact_lse, rtol=1e-6)


class TestOperations:
    """As PyTorch checks operations: schema, mutation, fakes, compilation with dynamic shapes."""

    def test_run(self):
        attend = attention()
        torch.library.opcheck(OPERATIONS.run.default, (*tensors(), attend.handle))
        require_close(OPERATIONS.run(*tensors(), attend.handle))

    def test_outputs_are_as_wide_as_values(self):
        host = podrt.HostAttention(**LAYER, v_head_dim=40, page_size=PAGE_SIZE)
        host.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table)
        attend, (q, k, v) = TorchAttention(host), tensors()
        v = v[..., :40].contiguous()
        torch.library.opcheck(OPERATIONS.run.default, (q, k, v, attend.handle))
        arguments = (q, k, v, *tables(), None, None, "NHD", True, None, "auto")
        torch.library.opcheck(OPERATIONS.hybrid_attention.default, arguments)
        compiled = torch.compile(attend, backend="eager")
        for out in (compiled(q, k, v), OPERATIONS.hybrid_attention(*arguments)[0]):
            assert out.shape == (*q.shape[:2], 40)
            np.testing.assert_array_equal(out.numpy(), attend(q, k, v).numpy())

    def test_run_of_strided_queries(self):
        attend, (q, k, v) = attention(), tensors()
        wide = torch.cat((q, q), dim=1)[:, : q.shape[1]]
        torch.library.opcheck(OPERATIONS.run.default, (wide, k, v, attend.handle))
        require_close(OPERATIONS.run(wide, k, v, attend.handle))

    @pytest.mark.parametrize("with_lse", [True, False])
    def test_run_out(self, with_lse):
        attend, inputs = attention(), tensors()
        out, lse = torch.empty_like(inputs[0]), torch.empty(inputs[0].shape[:2])
        outputs = (out, lse) if with_lse else (out,)
        torch.library.opcheck(OPERATIONS.run_out.default, (*inputs, attend.handle, *outputs))
        assert OPERATIONS.run_out(*inputs, attend.handle, *outputs) is None
        require_close(*outputs)

    def test_hybrid_attention(self):
        arguments = (*tensors(), *tables(), None, None, "NHD", True, None, "auto")
        torch.library.opcheck(OPERATIONS.hybrid_attention.default, arguments)
        require_close(*OPERATIONS.hybrid_attention(*arguments))

    def test_run_with_sinks(self):
        attend, sinks = attention(), torch.linspace(-1, 3, 8)
        for operation, outputs in (("run", ()), ("run_out", (torch.empty_like(tensors()[0]),))):
            arguments = (*tensors(), attend.handle, *outputs)
            overload = getattr(OPERATIONS, operation).default
            torch.library.opcheck(overload, arguments, {"sinks": sinks})
        out = OPERATIONS.run(*tensors(), attend.handle, sinks=sinks)
        exact, _ = BATCH.expected(sinks=sinks.numpy())
        np.testing.assert_allclose(out.double().numpy(), exact, rtol=2e-3, atol=1e-4)

    def test_hybrid_attention_of_windows_caps_and_sinks(self):
        sinks, options = torch.linspace(-1, 3, 8), {"window_left": 9, "logits_soft_cap": 2.0}
        arguments = (*tensors(), *tables(), None, None, "NHD", True, None, "auto", sinks, 9, 2.0)
        torch.library.opcheck(OPERATIONS.hybrid_attention.default, arguments)
        out = hybrid_attention(
            *tensors(), *tables()[:2], block_table=tables()[2], sinks=sinks, **options
        )
        exact, _ = BATCH.expected(sinks=sinks.numpy(), **options)
        np.testing.assert_allclose(out.double().numpy(), exact, rtol=2e-3, atol=1e-4)
        assert torch.equal(OPERATIONS.hybrid_attention(*arguments)[0], out)

    def test_they_come_with_the_module_alone(self):
        script = (
            "import torch, podrt; podrt.HostAttention; podrt.hybrid_attention; "
            "assert not hasattr(torch.ops.podrt, 'run'); "
            "import podrt.integrations.torch; torch.ops.podrt.run"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("backend", BACKENDS)
class TestCompiled:
    def test_call(self, backend):
        attend = attention()

        @torch.compile(fullgraph=True, backend=backend)
        def layer(q, k, v):
            return attend(q, k, v) * 2

        require_close(layer(*tensors()), factor=2)

    def test_sinks(self, backend):
        attend = attention()

        @torch.compile(fullgraph=True, backend=backend)
        def layer(q, k, v, sinks):
            return attend(q, k, v, sinks=sinks.float())

        sinks = torch.linspace(-1, 3, 8)
        exact, _ = BATCH.expected(sinks=sinks.numpy())
        out = layer(*tensors(), sinks)
        np.testing.assert_allclose(out.double().numpy(), exact, rtol=2e-3, atol=1e-4)

    def test_lse_and_outputs_of_the_caller(self, backend):
        attend = attention()

        @torch.compile(fullgraph=True, backend=backend)
        def layer(q, k, v, out, lse):
            both = attend(q, k, v, return_lse=True)
            assert attend(q, k, v, out=out, lse=lse) is out
            return (*both, attend(q, k, v, lse=torch.empty_like(lse)))

        inputs = tensors()
        out, lse = torch.empty_like(inputs[0]), torch.empty(inputs[0].shape[:2])
        *both, again = layer(*inputs, out, lse)
        require_close(*both)
        require_close(out, lse)
        require_close(again)

    def test_keys_that_the_graph_wrote_are_seen(self, backend):
        attend, (q, k, v) = attention(), tensors()
        keys, values = k.clone(), v.clone()
        places = torch.arange(0, 40, 2)

        def layer(q, k, v, new):
            k.view(-1, 2, 64)[places] = new
            v.view(-1, 2, 64).index_copy_(0, places, new)
            return attend(q, k, v)

        new = torch.randn(20, 2, 64, dtype=torch.float16)
        expected = layer(q, keys, values, new)
        out = torch.compile(layer, fullgraph=True, backend=backend)(q, k, v, new)
        assert torch.equal(k.isnan(), keys.isnan()) and torch.equal(
            k.nan_to_num(), keys.nan_to_num()
        )
        torch.testing.assert_close(out, expected, equal_nan=True)

    def test_whole_attention(self, backend):
        @torch.compile(fullgraph=True, backend=backend)
        def layer(q, k, v, qo_indptr, kv_lens, block_table):
            arguments = q, k, v, qo_indptr, kv_lens
            out, lse = hybrid_attention(*arguments, block_table=block_table, return_lse=True)
            return out, lse, hybrid_attention(*arguments, block_table=block_table)

        *both, again = layer(*tensors(), *tables())
        require_close(*both)
        require_close(again)


def test_caches_are_written_in_place():
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler for inductor")
    from torch._inductor.utils import run_and_get_code

    attend, (q, k, v) = attention(), tensors()

    def layer(q, k, v, new, places):
        k.view(-1, 2, 64)[places] = new
        v.view(-1, 2, 64)[places] = new
        return attend(q, k, v) + 1

    arguments = torch.zeros(1, 2, 64, dtype=torch.float16), torch.tensor([0])
    _, (code,) = run_and_get_code(torch.compile(layer, fullgraph=True), q, k, v, *arguments)
    allocated = [
        line for line in code.partition("def call")[2].splitlines() if "empty_strid" in line
    ]
    assert allocated and not [line for line in allocated if str(tuple(k.shape)) in line]
    assert "clone" not in code.partition("def call")[2].partition("runner =")[0]


def test_one_graph_serves_all_batches():
    attend = TorchAttention(podrt.HostAttention(**LAYER))
    compiled = CompileCounter()
    layer = torch.compile(attend, fullgraph=True, backend=compiled, dynamic=True)
    _, k, v = (torch.from_numpy(array) for array in (BATCH.q, BATCH.k, BATCH.v))
    for q_lens in ([1, 5, 0, 2, 1], [3, 3, 3, 3, 0], [9, 7, 12, 7, 3]):
        qo_indptr = np.cumsum([0, *q_lens]).astype(np.int32)
        attend.attention.plan(qo_indptr, KV_LENS)
        q = torch.randn(sum(q_lens), 8, 64, dtype=torch.float16)
        out = layer(q, k, v)
        expected = podrt.hybrid_attention(q.numpy(), BATCH.k, BATCH.v, qo_indptr, BATCH.kv_lens)
        np.testing.assert_array_equal(out.numpy(), expected)
    assert compiled.frame_count == 1


def test_one_graph_serves_all_attentions():
    compiled = CompileCounter()

    @torch.compile(fullgraph=True, backend=compiled)
    def layer(attend, q, k, v):
        return attend(q, k, v)

    kept = []
    for scale in (0.1, 0.2, 0.3, 0.4):
        attend = TorchAttention(
            podrt.HostAttention(**LAYER, page_size=PAGE_SIZE, sm_scale=scale, causal=False)
        )
        attend.attention.plan(QO_INDPTR, KV_LENS, block_table=BATCH.block_table)
        kept.append(attend)
        expected, _ = BATCH.expected(sm_scale=scale, causal=False)
        out = layer(attend, *tensors()).double().numpy()
        np.testing.assert_allclose(out, expected, rtol=2e-3, atol=1e-4)
    assert compiled.frame_count == 2


def test_a_module_is_exported_with_it():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = attention()

        def forward(self, q, k, v):
            return self.attend(q, k, v) * 2

    layer = Layer()
    exported = torch.export.export(layer, tuple(tensors()))
    require_close(exported.module()(*tensors()), factor=2)


def test_the_page_gives_what_the_reference_does():
    (example,) = python_examples("docs/torch.md")
    example = example.replace("HybridAttention", "HostAttention").replace('"cuda"', '"cpu"')
    names = {}
    exec(example.replace("fullgraph=True", 'fullgraph=True, backend="aot_eager"'), names)
    layer, out = names["layer"], names["out"]
    with torch.inference_mode():
        q = layer.qkv(names["x"]).view(-1, 12, 64)[:, :8]
        caches = layer.k_cache, layer.v_cache
        table = np.array([[4, -1], [2, 9]], np.int32)
        expected = podrt.hybrid_attention(q, *caches, [0, 3, 4], [3, 20], block_table=table)
    assert (layer.k_cache[4, :3] != 0).any() and (layer.k_cache[9, 3] != 0).any()
    torch.testing.assert_close(out, expected.flatten(1))


class TestEager:
    def test_results(self):
        attend = attention()
        require_close(*attend(*tensors(), return_lse=True))
        out, lse = torch.empty_like(tensors()[0]), torch.empty(tensors()[0].shape[:2])
        assert attend(*tensors(), out=out, lse=lse) is out
        require_close(out, lse)
        require_close(hybrid_attention(*tensors(), *tables()[:2], block_table=tables()[2]))

    def test_the_dispatcher_is_not_asked(self):
        asked = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                asked.append(operation.namespace)
                return operation(*args, **(kwargs or {}))

        attend, inputs = attention(), tensors()
        with Watch():
            attend(*inputs)
            hybrid_attention(*inputs, *tables()[:2], block_table=tables()[2])
            assert "podrt" not in asked
            OPERATIONS.run(*inputs, attend.handle)
        assert asked.count("podrt") == 1

    def test_what_is_no_attention_is_refused(self):
        with pytest.raises(TypeError, match=r"attention: got .*function.*HybridAttention"):
            TorchAttention(podrt.hybrid_attention)


class TestTraining:
    """There is no backward pass, and nobody is left to find out by a missing gradient."""

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_tensors_that_require_grad_are_refused(self, which):
        attend, inputs = attention(), tensors()
        inputs[which].requires_grad_()
        calls = (
            lambda: attend(*inputs),
            lambda: hybrid_attention(*inputs, *tables()[:2], block_table=tables()[2]),
            lambda: OPERATIONS.run(*inputs, attend.handle),
            lambda: torch.compile(attend, backend="aot_eager", fullgraph=True)(*inputs),
        )
        for call in calls:
            with pytest.raises(RuntimeError, match="podrt has no backward pass"):
                call()

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_nothing_is_refused_where_no_gradient_is_asked_for(self, backend, mode):
        attend = attention()
        weight = torch.ones(8, 1, dtype=torch.float16, requires_grad=True)

        @torch.compile(backend=backend, fullgraph=True)
        def layer(q, k, v):
            return attend(q * weight, k, v) * 2

        with mode():
            require_close(layer(*tensors()), factor=2)
            require_close(attend(tensors()[0] * weight, *tensors()[1:]))

    def test_the_rest_of_a_model_may_be_trained(self):
        attend = attention()
        weight = torch.ones((), dtype=torch.float16, requires_grad=True)

        @torch.compile(backend="aot_eager", fullgraph=True)
        def layer(q, k, v):
            return (attend(q, k, v) * weight).sum(dtype=torch.float32)

        layer(*tensors()).backward()
        assert weight.grad == pytest.approx(BATCH.expected()[0].sum(), abs=0.1)


class TestHandles:
    def test_an_attention_has_one(self):
        first = attention()
        assert TorchAttention(first.attention).handle == first.handle
        assert attention().handle != first.handle

    def test_they_keep_nothing_alive(self):
        attend = attention()
        handle, alive = attend.handle, weakref.ref(attend.attention)
        layer = torch.compile(lambda *args: OPERATIONS.run(*args, handle), backend="aot_eager")
        require_close(layer(*tensors()))
        del attend
        gc.collect()
        assert alive() is None
        with pytest.raises(RuntimeError, match=f"handle={handle}: .* is gone"):
            layer(*tensors())

    def test_errors_of_a_run_come_through(self):
        attend, (q, k, v) = attention(), tensors()
        layer = torch.compile(attend, backend="aot_eager", fullgraph=True)
        with pytest.raises(ValueError, match="q: got shape"):
            layer(q[1:], k, v)
