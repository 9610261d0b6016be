"""Layers of a step on a GPU of bytes: one after another goes the short way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

from fake_gpu import FakeGpu  # noqa: E402
from runtime_support import launched  # noqa: E402
from torch_on_fake_gpu import install_for_torch  # noqa: E402
from transformers import CompileConfig  # noqa: E402
from transformers_support import (  # noqa: E402
    CONFIGS,
    generate_batch,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.integrations.transformers import functions  # noqa: E402
from podrt.integrations.transformers.engine import Engine, Record  # noqa: E402
from podrt.integrations.transformers.failures import StepError  # noqa: E402
from podrt.integrations.transformers.hooks import ENGINE  # noqa: E402
from podrt.integrations.transformers.layers import Layer  # noqa: E402
from podrt.kernels.cache_write import CacheWriteConfig  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, PAGE, LAYERS = 8, 2, 64, 16, 3
SCALE = HEAD_DIM**-0.5


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install_for_torch(monkeypatch)


@pytest.fixture
def careful(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers whose write and run were called by themselves."""
    seen: list[int] = []
    attend = Engine.attend

    def noted(self: Engine, layer_idx: int, *others: Any) -> Any:
        seen.append(layer_idx)
        return attend(self, layer_idx, *others)

    monkeypatch.setattr(Engine, "attend", noted)
    return seen


def make_engine(gpu: Any) -> Engine:
    pages = torch.zeros(2 * LAYERS + 40, PAGE, KV_HEADS, HEAD_DIM, dtype=torch.float16)
    views = {at: (pages[2 * at : -1], pages[2 * at + 1 :]) for at in range(LAYERS)}
    allocator = SimpleNamespace(
        tokens_per_page=PAGE,
        num_key_value_heads=KV_HEADS,
        block_physical_stride=PAGE,
        block_table={},
        _kv_page_views=views,
    )
    processor = SimpleNamespace(
        cache=SimpleNamespace(
            cache_allocators={"full_attention": allocator}, max_tokens_read=40 * PAGE
        ),
        model_device=torch.device("cuda", 0),
        model_runner=SimpleNamespace(pad_inputs=False),
    )
    layer = Layer(HEADS, KV_HEADS, HEAD_DIM, "float16", SCALE)
    return Engine(processor, dict.fromkeys(range(LAYERS), layer), "auto", Record())


class Step:
    """A step of some decodes, and its layers' calls."""

    def __init__(self, engine: Engine, decodes: int, keys: int, stream: int) -> None:
        self._engine, self._decodes = engine, decodes
        table = engine._allocator.block_table
        states = []
        for at in range(decodes):
            table[str(at)] = [at] * -(-keys // PAGE)
            state = SimpleNamespace(request_id=str(at), position_offset=keys)
            states.append(SimpleNamespace(state=state, query_length=1))
        self._slots = torch.arange(decodes)[None]
        engine.plan(states, stream)

    def call(self, module: Any, **changes: Any) -> Any:
        """Call a layer as transformers does."""
        q, k, v = (
            torch.zeros(1, self._decodes, heads, HEAD_DIM, dtype=torch.float16).transpose(1, 2)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        arguments = {
            ENGINE: self._engine,
            "write_index": [self._slots[0]],
            "dropout": 0.0,
            "sliding_window": None,
            "scaling": SCALE,
        } | changes
        out, _ = functions.attention(module, q, k, v, None, **arguments)
        assert out.shape == (1, self._decodes, HEADS, HEAD_DIM)
        return out


@pytest.fixture
def modules() -> list[Any]:
    return [SimpleNamespace(layer_idx=at, is_causal=True, config=None) for at in range(LAYERS)]


def test_all_but_a_layers_first_call_go_the_short_way(
    gpu: Any, careful: list[int], modules: list[Any]
) -> None:
    engine = make_engine(gpu)
    for step, decodes in enumerate((5, 5, 9, 2)):
        calls = Step(engine, decodes, 100 + step, gpu.stream)
        for module in modules:
            calls.call(module)
        found = launched(gpu)
        assert [isinstance(each.variant, CacheWriteConfig) for each in found] == [True, False] * 3
        pages = [views[0].data_ptr() for views in engine.pages.values()]
        assert [int(each.arguments["k_cache"]) for each in found[::2]] == pages
    assert careful == [0, 1, 2]  # each is checked by itself once


def test_a_layer_that_calls_otherwise_is_checked_again(
    gpu: Any, careful: list[int], modules: list[Any]
) -> None:
    calls = Step(engine := make_engine(gpu), 5, 100, gpu.stream)
    for module in modules * 2:
        calls.call(module)
    launched(gpu)
    for changes in ({"softcap": 30.0}, {"scaling": 1.0}, {"position_bias": 1}, {"dropout": 0.5}):
        with pytest.raises(StepError, match="layer 1"):
            calls.call(modules[1], **changes)
    assert not launched(gpu)
    calls.call(modules[1])
    assert careful == [0, 1, 2]
    calls = Step(engine, 5, 101, gpu.stream)
    another = SimpleNamespace(layer_idx=1, is_causal=False, config=None)
    with pytest.raises(StepError, match="is not causal"):
        calls.call(another)


def test_tensors_of_other_heads_are_refused_by_name(gpu: Any, modules: list[Any]) -> None:
    calls = Step(engine := make_engine(gpu), 5, 100, gpu.stream)
    for module in modules:
        calls.call(module)
    q = torch.zeros(1, 2 * HEADS, 5, HEAD_DIM, dtype=torch.float16)
    k = torch.zeros(1, KV_HEADS, 5, HEAD_DIM, dtype=torch.float16)
    arguments = {"write_index": [torch.arange(5)], "dropout": 0.0, "sliding_window": None}
    with pytest.raises(StepError, match="by its config it was planned as"):
        functions.attention(
            modules[0], q, k, k, None, scaling=SCALE, **{ENGINE: engine, **arguments}
        )


def test_a_model_may_be_compiled() -> None:
    model, prompts = make_model(CONFIGS["llama"]), make_prompts([5, 40, 17])
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=False, dynamic=True)
    with integration.enable(model):
        found = generate_batch(model, prompts, 4, varlen_compile_config=compiled)
    require_greedy(model, prompts, found)
