"""Managers of continuous batching: how they get podrt, lose it, and outlive failures."""

from __future__ import annotations

import copy
import gc
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

from transformers.generation.continuous_batching.continuous_api import (  # noqa: E402
    ContinuousBatchingManager,
)
from transformers_support import (  # noqa: E402
    CONFIGS,
    SIZES,
    batching_config,
    generate_batch,
    greedy,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.attention import HybridAttention  # noqa: E402
from podrt.integrations.transformers import hooks  # noqa: E402
from podrt.integrations.transformers.engine import Engine  # noqa: E402


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model(CONFIGS["llama"])


def make_manager(model: Any, tokens: int, **batching: Any) -> Any:
    """Return a manager that has its processor, and has not begun."""
    manager = model.init_continuous_batching(greedy(tokens), batching_config(**batching))
    manager.warmup()
    return manager


def results_of(manager: Any, count: int) -> list[Any]:
    results: list[Any] = []
    while len(results) < count:
        result = manager.get_result(timeout=60)
        assert result is not None
        results.append(result)
    return results


def require_right(model: Any, results: list[Any]) -> None:
    assert [result.error for result in results] == [None] * len(results)
    tokens = [result.generated_tokens for result in results]
    require_greedy(model, [result.prompt_ids for result in results], tokens)


def test_requests_arrive_while_others_run(llama: Any) -> None:
    prompts, lengths = make_prompts([40, 7, 70, 19, 33, 5]), [3, 12, 6, 9, 1, 7]
    with integration.enable(llama):
        manager = make_manager(llama, 12)
        processor, stepped = manager.batch_processor, threading.Semaphore(0)
        step = processor._generation_step
        processor._generation_step = lambda model: (step(model), stepped.release())
        manager.start()
        for prompt, length in zip(prompts, lengths, strict=True):
            manager.add_request(prompt, max_new_tokens=length)
            assert stepped.acquire(timeout=60)
        results = results_of(manager, len(prompts))
        manager.stop()
    assert sorted(len(result.generated_tokens) for result in results) == sorted(lengths)
    require_right(llama, results)


def test_prefixes_are_found_in_the_cache(llama: Any) -> None:
    prompts = make_prompts([90, 100, 101, 85], shared=80)
    with integration.enable(llama):
        manager = make_manager(llama, 8)
        cache, matches = manager.batch_processor.cache, []
        search = cache.search_prefix_match
        cache.search_prefix_match = lambda *request: matches.append(search(*request)) or matches[-1]
        manager.start()
        manager.add_request(prompts[0], max_new_tokens=8)
        results = results_of(manager, 1)
        manager.add_requests(prompts[1:], max_new_tokens=8)
        results += results_of(manager, 3)
        manager.stop()
    assert matches == [0, 80, 80, 80]
    require_right(llama, results)


def test_requests_are_preempted(llama: Any) -> None:
    prompts = make_prompts([60, 50, 55, 40])
    with integration.enable(llama):
        manager = make_manager(llama, 40, num_blocks=14)
        offloading, preempted = manager.batch_processor.offloading_manager, []
        offload = offloading.offload_requests
        offloading.offload_requests = lambda: preempted.append(offload()) or preempted[-1]
        manager.start()
        manager.add_requests(prompts, max_new_tokens=40)
        results = results_of(manager, 4)
        manager.stop()
    assert any(preempted)
    assert [len(result.generated_tokens) for result in results] == [40] * 4
    require_right(llama, results)


def test_several_sequences_of_a_prompt_share_its_pages(llama: Any) -> None:
    generation = greedy(6)
    generation.num_return_sequences = 2
    with integration.enable(llama):
        results = llama.generate_batch(
            make_prompts([21, 40]),
            generation_config=generation,
            continuous_batching_config=batching_config(),
        )
    assert len(results) == 4
    require_right(llama, list(results.values()))


def test_a_manager_made_by_hand_says_that_it_is_not_attached(llama: Any) -> None:
    with integration.enable(llama):
        manager = ContinuousBatchingManager(llama, greedy(8), batching_config())
        manager.start()
        manager.add_request(make_prompts([7])[0], max_new_tokens=8)
        (result,) = results_of(manager, 1)
        manager.stop()
    assert "attach()" in result.error


def test_podrt_stays_while_a_manager_runs(llama: Any) -> None:
    enabled = integration.enable(llama)
    manager = make_manager(llama, 8)
    manager.start()
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM: .* still running"):
        enabled.disable()
    manager.add_requests(make_prompts([40, 7]), max_new_tokens=8)
    results = results_of(manager, 2)
    manager.stop()
    enabled.disable()
    require_right(llama, results)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_manager_does_not_outlive_podrt(llama: Any, has_begun: bool) -> None:
    """The engine's own attention would see no old keys, as they are not gathered for podrt."""
    with integration.enable(llama):
        manager = llama.init_continuous_batching(greedy(8), batching_config())
        if has_begun:
            manager.warmup()
    manager.start()
    manager.add_request(make_prompts([40])[0], max_new_tokens=8)
    manager._generation_thread.join(timeout=60)
    assert "does not run on podrt" in str(manager.background_thread_status.fatal_error)


def test_an_enabled_model_is_not_copied(llama: Any) -> None:
    with integration.enable(llama), pytest.raises(TypeError, match=r"call disable\(\)"):
        copy.deepcopy(llama)
    copy.deepcopy(llama)


def test_caches_are_not_kept(llama: Any) -> None:
    """They take most of a GPU's memory, which the next call asks for again."""

    def num_caches() -> int:
        gc.collect()
        page = 16, SIZES["num_key_value_heads"], SIZES["head_dim"]
        tensors = (each for each in gc.get_objects() if type(each) is torch.Tensor)
        return sum(each.ndim == 4 and each.shape[1:] == page for each in tensors)

    with integration.enable(llama) as enabled:
        before = num_caches()
        generate_batch(llama, make_prompts([9, 30]), 3)
        steps = enabled.status().steps
        assert steps and num_caches() == before
        generate_batch(llama, make_prompts([9, 30]), 3)
        assert enabled.status().steps == 2 * steps
        assert enabled.status().kernels == ("reference in host memory",)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("run", "could not run LlamaAttention, layer 1"),
        ("write", "could not write keys of layer 1"),
    ],
)
def test_a_layer_that_fails_leaves_the_engine_and_the_other_requests_running(
    llama: Any, monkeypatch: pytest.MonkeyPatch, call: str, said: str
) -> None:
    inner = getattr(Engine, call)

    def failing(self: Engine, layer_idx: int, *others: Any) -> Any:
        if self.num_steps == 3 and layer_idx == 1:
            raise ValueError("no kernel for this step")
        return inner(self, layer_idx, *others)

    monkeypatch.setattr(Engine, call, failing)
    first, *others = make_prompts([40, 7, 19])
    with integration.enable(llama):
        manager = make_manager(llama, 6)
        manager.start()
        manager.add_request(first, max_new_tokens=6)
        (failed,) = results_of(manager, 1)
        manager.add_requests(others, max_new_tokens=6)
        results = results_of(manager, 2)
        manager.stop()
    assert f"podrt {said}: no kernel for this step" in failed.error
    require_right(llama, results)


def test_a_layer_that_asks_for_more_fails_by_name() -> None:
    model = make_model(CONFIGS["llama"])
    layer = model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs, position_bias=1)
    with integration.enable(model):
        results = model.generate_batch(
            make_prompts([40, 7]),
            generation_config=greedy(6),
            continuous_batching_config=batching_config(),
        )
    for result in results.values():
        assert "layer 1: LlamaAttention: position_bias asks for a bias" in result.error


def test_pages_are_the_cache_itself(llama: Any) -> None:
    with integration.enable(llama) as enabled:
        made: list[Engine] = []
        engine_of = enabled._engine
        enabled._engine = lambda processor: made.append(engine_of(processor)) or made[-1]  # type: ignore
        manager = make_manager(llama, 6)
        (allocator,) = manager.batch_processor.cache.cache_allocators.values()
        layouts = set()
        for layer, views in made[0].pages.items():
            for page, of_engine in zip(views, allocator._kv_page_views[layer], strict=True):
                assert page.data_ptr() == of_engine.data_ptr()
                layouts.add((page.shape, page.stride()))
        assert len(layouts) == 1  # so that runs go the short way
        last = allocator.num_blocks + 2 * allocator.blocks_per_sector - 1
        stride = allocator.block_physical_stride // allocator.tokens_per_page
        assert last * stride < next(iter(layouts))[0][0]
        manager.destroy()


def test_what_the_engine_clears_at_the_start_is_waited_for(monkeypatch: Any) -> None:
    """It clears its inputs on another stream than the one that the first batch is copied on."""
    waited: list[Any] = []

    def current_stream(device: Any) -> Any:
        return SimpleNamespace(synchronize=lambda: waited.append(device))

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    for kind, count in (("cuda", 2), ("cpu", 0)):
        processor = SimpleNamespace(model_device=torch.device(kind), _podrt_engine=object())
        manager = SimpleNamespace(_create_batch_processor=lambda made=processor: made)
        monkeypatch.setattr(hooks, "all_layers_full", lambda _: nullcontext())
        hooks.attach(manager, lambda _: pytest.fail("made again"), lambda: None)
        for _ in range(2):  # the second time the processor is reset
            assert manager._create_batch_processor() is processor
        assert len(waited) == count
        waited.clear()


class Planned(HybridAttention):
    """Notes how it was planned; `fails` says when that is refused."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fails = False

    def grow(self, num_keys: int = 1, **_: Any) -> bool:
        self.steps.append("grown")
        return True

    def prepare(self, batch: Any, table: Any, **_: Any) -> Any:
        if self.fails:
            raise MemoryError("no room")
        self.steps.append("planned")

    def adopt(self, prepared: Any) -> None:
        pass


def test_nothing_grows_from_a_step_that_failed(llama: Any, monkeypatch: Any) -> None:
    with integration.enable(llama):
        engine = make_manager(llama, 4).batch_processor._podrt_engine
    attention = Planned()
    monkeypatch.setattr(engine, "attentions", dict.fromkeys(engine.attentions, attention))
    monkeypatch.setattr(engine, "_note", lambda: None)
    blocks = engine._allocator.block_table
    blocks["a"] = [1]

    def step(keys: int) -> None:
        state = SimpleNamespace(request_id="a", position_offset=keys)
        engine.plan([SimpleNamespace(state=state, query_length=1)], None)

    for keys in (3, 4, 5):
        step(keys)
    assert attention.steps == ["planned", "grown", "grown"]
    attention.fails = True
    with pytest.raises(MemoryError):
        step(9)
    with pytest.raises(ValueError, match="blocks hold"):
        step(10_000)
    attention.fails = False
    for keys in (6, 7):  # the first as if nothing had failed
        step(keys)
    assert attention.steps[3:] == ["planned", "grown"]
