"""Continuous batching of small real models, on podrt's reference."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")

from transformers import (  # noqa: E402
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.generation.continuous_batching import ContinuousBatchingManager  # noqa: E402
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
from podrt.errors import UnsupportedConfigError  # noqa: E402
from podrt.integrations.transformers import functions, versions  # noqa: E402
from podrt.integrations.transformers.engine import Engine  # noqa: E402
from podrt.integrations.transformers.layers import Layer, layer_of_call, layers_of  # noqa: E402
from podrt.integrations.transformers.tables import PageTables  # noqa: E402
from podrt.policy.policies import Policy  # noqa: E402

LENGTHS = [5, 40, 17, 70, 1]


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model(CONFIGS["llama"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_the_likeliest_ones(name: str, dtype: Any) -> None:
    model, prompts = make_model(CONFIGS[name], dtype), make_prompts(LENGTHS)
    with integration.enable(model):
        found = generate_batch(model, prompts, 8)
        assert integration.status(model).steps > 8
    require_greedy(model, prompts, found)


@pytest.mark.parametrize(
    "batching",
    [
        {"max_requests_per_batch": 3},
        {"page_size": 4, "num_blocks": 100},
        {"page_size": 256, "num_blocks": 8},
        {"num_blocks": 9},  # not all requests fit: some wait, or start anew
        {"max_batch_tokens": 128},
    ],
)
def test_requests_come_and_go_at_different_steps(llama: Any, batching: dict[str, int]) -> None:
    prompts = make_prompts([33, 4, 60, 18, 47, 2])
    with integration.enable(llama):
        found = generate_batch(llama, prompts, 10, **batching)
    require_greedy(llama, prompts, found)


def test_requests_share_the_pages_of_a_prefix(llama: Any) -> None:
    prompts = make_prompts([70, 66, 80, 50], shared=48)
    with integration.enable(llama):
        found = generate_batch(llama, prompts, 6, allow_block_sharing=True, max_batch_tokens=64)
    require_greedy(llama, prompts, found)


def test_padded_batches(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under CUDA graphs: rows to the next 64, lengths that plateau, no keys to gather."""
    made = Engine.__init__
    engines = []

    def padded(self: Engine, processor: Any, *arguments: Any, **options: Any) -> None:
        processor.model_runner.pad_inputs = True
        made(self, processor, *arguments, **options)
        engines.append(processor)

    monkeypatch.setattr(Engine, "__init__", padded)
    prompts = make_prompts(LENGTHS)
    with integration.enable(llama):
        found = generate_batch(llama, prompts, 6, max_batch_tokens=128)
        assert engines
    require_greedy(llama, prompts, found)


def test_a_plan_of_another_step_would_show(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Engine.plan

    def stale(self: Engine, states: Any, stream: Any) -> None:
        if self.num_steps % 2 and sum(s.query_length for s in states) == self._num_tokens:
            self.num_steps += 1
            return
        plan(self, states, stream)

    monkeypatch.setattr(Engine, "plan", stale)
    prompts = make_prompts([20, 21, 22])
    with integration.enable(llama):
        found = generate_batch(llama, prompts, 12, max_batch_tokens=128)
    with pytest.raises(AssertionError):
        require_greedy(llama, prompts, found)


def test_a_step_that_fails_leaves_the_engine_and_the_other_requests_running(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, failures = Engine.plan, []

    def failing(self: Engine, states: Any, stream: Any) -> None:
        if self.num_steps == 4 and not failures:
            failures.extend(state.state.request_id for state in states)
            raise MemoryError("no room for the plan")
        plan(self, states, stream)

    monkeypatch.setattr(Engine, "plan", failing)
    prompts = make_prompts([20, 21, 90, 33, 47])
    with integration.enable(llama):
        results = llama.generate_batch(
            prompts,
            generation_config=greedy(6),
            continuous_batching_config=batching_config(max_requests_per_batch=2),
            progress_bar=False,
        )
    found = {name: result for name, result in results.items() if result.error is None}
    assert set(results) - set(found) == set(failures) != set()
    for name in failures:
        assert "no room for the plan" in str(results[name].error)
    assert len(found) >= 3
    served = [prompts[list(results).index(name)] for name in found]
    require_greedy(llama, served, [result.generated_tokens for result in found.values()])


def test_no_key_is_gathered(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("keys were gathered")

    prompts = make_prompts(LENGTHS)
    with integration.enable(llama):
        monkeypatch.setattr(torch, "index_select", refuse)
        found = generate_batch(llama, prompts, 4)
    monkeypatch.undo()
    require_greedy(llama, prompts, found)


def test_new_keys_are_written_in_one_call_a_layer(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the engine wrote itself")

    calls: list[str] = []
    for name in ("write", "run"):
        inner = getattr(Engine, name)

        def noted(self: Engine, *arguments: Any, name: str = name, inner: Any = inner) -> Any:
            calls.append(name)
            return inner(self, *arguments)

        monkeypatch.setattr(Engine, name, noted)
    prompts = make_prompts(LENGTHS)
    with integration.enable(llama):
        monkeypatch.setattr(torch.Tensor, "index_copy_", refuse)
        found = generate_batch(llama, prompts, 4)
    monkeypatch.undo()
    assert calls == ["write", "run"] * (len(calls) // 2) != []
    require_greedy(llama, prompts, found)


def test_one_plan_serves_all_layers_of_a_step(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"plan": 0, "run": 0}
    for name in calls:
        inner = getattr(Engine, name)

        def counted(self: Engine, *arguments: Any, name: str = name, inner: Any = inner) -> Any:
            calls[name] += 1
            return inner(self, *arguments)

        monkeypatch.setattr(Engine, name, counted)
    with integration.enable(llama):
        generate_batch(llama, make_prompts([9, 30]), 5)
    assert calls["run"] == SIZES["num_hidden_layers"] * calls["plan"] > 0


def test_a_manager_serves_several_sessions(llama: Any) -> None:
    prompts, found = make_prompts(LENGTHS), []
    with integration.enable(llama) as enabled:
        manager = llama.init_continuous_batching(greedy(5), batching_config())
        for session in range(2):
            manager.start()
            names = manager.add_requests(prompts, max_new_tokens=5)
            results = {}
            while len(results) < len(names):
                result = manager.get_result(timeout=60)
                results[result.request_id] = result
            manager.stop(block=True, keep_for_next_session=not session)
            found.append([results[name].generated_tokens for name in names])
        assert enabled.status().kernels == ("reference in host memory",)
    for tokens in found:
        require_greedy(llama, prompts, tokens)


def test_caches_are_not_kept_alive(llama: Any) -> None:
    with integration.enable(llama) as enabled:
        manager = llama.init_continuous_batching(greedy(3), batching_config())
        manager.warmup()
        manager.batch_processor = manager.batch_processor or manager._create_batch_processor()
        cache = weakref.ref(manager.batch_processor.cache)
        del manager
        gc.collect()
        assert cache() is None
        assert not enabled.status().steps


def test_the_policy_serves_generate_too(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    inner = Layer.attention

    def attention(self: Layer, device: Any, policy: Any, **options: Any) -> Any:
        asked.append(policy)
        return inner(self, device, policy, **options)

    monkeypatch.setattr(Layer, "attention", attention)
    ids = torch.tensor(make_prompts([12]))
    with integration.enable(llama, policy="portable"):
        llama.generate(ids, generation_config=greedy(2))
    assert asked[-1] == Policy(family="portable")
    with pytest.raises(ValueError, match="policy"):
        integration.enable(llama, policy="fastest")


def test_a_manager_that_was_made_by_hand(llama: Any) -> None:
    prompts = make_prompts([9, 30])
    with integration.enable(llama) as enabled:
        manager = ContinuousBatchingManager(llama, greedy(4), batching_config())
        enabled.attach(manager)
        names = manager.add_requests(prompts, max_new_tokens=4)
        manager.start()
        results = [manager.get_result(timeout=60) for _ in names]
        with pytest.raises(ValueError, match="has begun"):
            enabled.attach(manager)
        manager.stop(block=True)
        other = ContinuousBatchingManager(
            make_model(CONFIGS["llama"]), greedy(4), batching_config()
        )
        with pytest.raises(ValueError, match="another model"):
            enabled.attach(other)
    tokens = {result.request_id: result.generated_tokens for result in results}
    require_greedy(llama, prompts, [tokens[name] for name in names])
    with pytest.raises(RuntimeError, match="is disabled"):
        enabled.attach(manager)


def test_disabling_restores_the_model_and_nothing_else_is_changed(llama: Any) -> None:
    other = make_model(CONFIGS["llama"])
    before = llama.config._attn_implementation, dict(vars(type(llama)))
    enabled = integration.enable(llama)
    assert integration.status(llama).enabled
    assert not integration.status(other).enabled
    with pytest.raises(ValueError, match="already"):
        integration.enable(llama)
    enabled.disable()
    enabled.disable()
    assert (llama.config._attn_implementation, dict(vars(type(llama)))) == before
    assert "init_continuous_batching" not in vars(llama)
    assert not integration.status(llama).enabled
    generate_batch(llama, make_prompts([9, 30]), 3)


def test_continuous_batching_without_enable_is_refused(llama: Any) -> None:
    llama.config._attn_implementation_internal = "podrt_flash"
    try:
        manager = llama.init_continuous_batching(greedy(3), batching_config())
        manager.start()
        manager.add_request(list(range(1, 9)))
        result = manager.get_result(timeout=60)
        manager.stop(block=True)
    finally:
        llama.config._attn_implementation_internal = "sdpa"
    assert "enable(model)" in str(result.error)


REFUSED = {
    "float32": (CONFIGS["llama"], torch.float32, "float32"),
    "chunks": (
        LlamaConfig(**SIZES, layer_types=["full_attention", "chunked_attention"]),
        torch.bfloat16,
        "layer_types has .'chunked_attention'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_podrt_has_not_is_refused_by_name(case: str) -> None:
    config, dtype, words = REFUSED[case]
    model = make_model(config, dtype)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedConfigError, match=words) as error:
        integration.enable(model)
    assert type(model).__name__ in str(error.value)
    assert model.config._attn_implementation == before


def test_a_call_unlike_the_config_is_refused() -> None:
    """A window that a layer does not pass on would lie in its mask alone; nothing is guessed."""
    model = make_model(CONFIGS["gemma2"])
    sliding, full = (layer.self_attn for layer in model.model.layers)
    q, k = torch.zeros(1, 4, 1, 64), torch.zeros(1, 2, 1, 64)
    found = layer_of_call(sliding, q, k, None, {"sliding_window": 20, "softcap": 2.0})
    assert (found.window_left, found.logits_soft_cap) == (19, 2.0)
    assert layer_of_call(full, q, k, None, {"sliding_window": None}).window_left is None
    with pytest.raises(UnsupportedConfigError, match="lies in its mask alone"):
        layer_of_call(sliding, q, k, None, {})
    with pytest.raises(UnsupportedConfigError, match="position_bias asks for a bias"):
        layer_of_call(full, q, k, None, {"position_bias": q})


def test_values_narrower_than_keys_are_refused_by_name() -> None:
    layer = make_model(CONFIGS["gemma2"]).model.layers[0].self_attn
    q, k, v = torch.zeros(1, 4, 1, 64), torch.zeros(1, 2, 1, 64), torch.zeros(1, 2, 1, 32)
    with pytest.raises(UnsupportedConfigError, match="values of 32 elements beside keys of 64"):
        functions.attention(layer, q, k, v)


def test_a_model_of_values_narrower_than_keys_takes_the_fallback() -> None:
    model = make_model(CONFIGS["llama"])
    for layer in model.model.layers:
        layer.self_attn.qk_head_dim, layer.self_attn.v_head_dim = 96, 64
    with pytest.raises(UnsupportedConfigError, match="values of 64 elements beside keys of 96"):
        integration.enable(model)
    with integration.enable(model, fallback="sdpa") as enabled:
        assert not enabled.status().enabled


def test_every_part_of_a_model_gets_its_own_attention_back() -> None:
    model = LlavaForConditionalGeneration._from_config(
        LlavaConfig(
            text_config=CONFIGS["llama"],
            vision_config=CLIPVisionConfig(hidden_size=48, num_hidden_layers=1, image_size=32),
            image_token_index=9,
        ),
        attn_implementation="eager",
        dtype=torch.bfloat16,
    )

    def names() -> list[str]:
        return [
            part.config._attn_implementation for part in model.modules() if hasattr(part, "config")
        ]

    before = names()
    with integration.enable(model):
        assert {"podrt_flash", "eager"} == set(names())
    assert names() == before
    model.model.language_model.layers[0].self_attn.is_causal = False
    with integration.enable(model, fallback="sdpa"):
        assert set(names()) == {"sdpa"}
    assert names() == before


def test_a_layer_that_was_checked_is_checked_again_when_it_calls_otherwise() -> None:
    model = make_model(CONFIGS["gemma2"])
    prompts = make_prompts([20, 9])
    calls = 0

    def attention(module: Any, *tensors: Any, **arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:  # two layers in two steps
            arguments["softcap"] = 30.0
        return functions.attention(module, *tensors, **arguments)

    with integration.enable(model):
        AttentionInterface.register(functions.PAGED, attention)
        try:
            results = model.generate_batch(
                prompts,
                generation_config=greedy(6),
                continuous_batching_config=batching_config(),
                progress_bar=False,
            )
        finally:
            AttentionInterface.register(functions.PAGED, functions.attention)
    assert calls > 4
    errors = [str(result.error) for result in results.values()]
    assert all("by its config it was planned as" in error for error in errors)


def test_layers_that_call_otherwise_than_planned_fail_their_requests() -> None:
    model = make_model(CONFIGS["gemma2"])
    with integration.enable(model):
        model.model.layers[1].self_attn.attn_logit_softcapping = 30.0
        results = model.generate_batch(
            make_prompts([20]),
            generation_config=greedy(2),
            continuous_batching_config=batching_config(),
            progress_bar=False,
        )
    (result,) = results.values()
    assert "by its config it was planned as" in str(result.error)


def test_layers_that_are_alike_share_a_plan() -> None:
    layers = layers_of(make_model(CONFIGS["gpt-oss"]))
    assert {index: layer.window_left for index, layer in layers.items()} == {0: 15, 1: None}
    assert len(set(layers_of(make_model(CONFIGS["mistral with a window"])).values())) == 1


def test_a_fallback_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(CONFIGS["llama"], torch.float32, attn_implementation="eager")
    before = model.config._attn_implementation
    with caplog.at_level("WARNING", "podrt"):
        enabled = integration.enable(model, fallback="sdpa")
    assert len([record for record in caplog.records if record.name == "podrt"]) == 1
    with enabled:
        assert model.config._attn_implementation == "sdpa"
        assert not integration.status(model).enabled
        assert "float32" in integration.status(model).reason
        with pytest.raises(RuntimeError, match="does not run on podrt"):
            enabled.attach(model.init_continuous_batching(greedy(3), batching_config()))
        generate_batch(model, make_prompts([9, 30]), 3)
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="fallback"):
        integration.enable(model, fallback="eager")
    with pytest.raises(ValueError, match="policy"):
        integration.enable(model, policy="fastest")


def test_other_releases_are_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its module makes itself anew when models are imported, so there may be two of them.
    monkeypatch.setattr(versions.transformers, "__version__", "5.17.0")
    with pytest.raises(ImportError, match=r"5\.17\.0 is installed.*5\.23 and 5\.24"):
        integration.enable(llama)


def pages_of(tables: PageTables, requests: list[str], blocks: dict[str, list[int]]) -> Any:
    """The pages of each request of a batch that are not to spare."""
    table = tables.of(requests, blocks)
    assert table.kv_indptr is not None
    ends = zip(table.kv_indptr[:-1], table.kv_indptr[1:], requests, strict=True)
    return [table.flat()[begin:end][: len(blocks[name])].tolist() for begin, end, name in ends]


def test_page_tables_follow_block_tables() -> None:
    tables = PageTables(page_size=16, pages_per_block=4, most_blocks=40)
    blocks = {"a": [3, 1], "b": [2]}
    first = tables.of(["b", "a"], blocks)
    assert pages_of(tables, ["b", "a"], blocks) == [[8], [12, 4]]
    assert tables.of(["b", "a"], blocks) is first
    before = first.flat().tolist()
    assert tables.changed == {}
    blocks["a"].append(7)
    assert pages_of(tables, ["b", "a"], blocks) == [[8], [12, 4, 28]]
    assert first.kv_indptr is not None
    assert tables.changed == {int(first.kv_indptr[1]) + 2: 28}
    assert tables.room == [16, 48]
    assert pages_of(tables, ["a"], blocks) == [[12, 4, 28]]
    assert tables.changed is None
    blocks["a"][0] = 5  # a page that turned out to be another request's
    assert pages_of(tables, ["a"], blocks) == [[20, 4, 28]]
    assert tables.changed == {0: 20, 1: 4, 2: 28}
    del blocks["a"][1:]
    assert pages_of(tables, ["a"], blocks) == [[20]]
    assert tables.room == [16]
    assert first.flat().tolist() == before


def test_page_tables_of_requests_that_come_grow_and_go() -> None:
    random = np.random.default_rng(3)
    tables = PageTables(page_size=16, pages_per_block=3, most_blocks=21)
    blocks: dict[str, list[int]] = {}
    kept = 0
    for step in range(400):
        if random.random() < 0.1 or not blocks:
            blocks[str(step)] = []
        if random.random() < 0.05 and len(blocks) > 1:
            del blocks[str(random.choice([*blocks]))]
        for each in blocks.values():
            if len(each) < 30 and random.random() < 0.3:
                each.append(int(random.integers(500)))
        requests = [*blocks]
        before = tables.of(requests[:1], blocks) if step % 90 == 0 else tables._table
        pages = [[3 * block for block in blocks[name]] for name in requests]
        assert pages_of(tables, requests, blocks) == pages
        assert tables.room == [16 * len(blocks[name]) for name in requests]
        table = tables.of(requests, blocks)
        kept += table.kv_indptr is before.kv_indptr
        assert table.kv_indptr is not None
        for entries, name in zip(np.diff(table.kv_indptr), requests, strict=True):
            assert len(blocks[name]) <= entries <= max(21, len(blocks[name]))
    assert kept > 100  # places of requests that only grow stay as they are


def test_keys_beyond_a_requests_blocks_are_refused(llama: Any, monkeypatch: Any) -> None:
    """Entries to spare would be read in their place."""
    found, require_room = [], PageTables.require_room

    def longer(self: PageTables, kv_lens: list[int]) -> None:
        with pytest.raises(ValueError, match="blocks hold"):
            require_room(self, [keys + 16 for keys in kv_lens])
        found.append(kv_lens)
        require_room(self, kv_lens)

    monkeypatch.setattr(PageTables, "require_room", longer)
    with integration.enable(llama):
        generate_batch(llama, make_prompts([9, 30]), 3)
    assert found


def test_shared_prefixes_are_for_gpus_alone() -> None:
    """On a CPU attention is exact, and each request reads its own keys."""
    model, prompts = make_model(CONFIGS["llama"]), make_prompts([40, 36, 44], shared=32)
    with integration.enable(model, shared_prefixes=True):
        found = generate_batch(model, prompts, 8, allow_block_sharing=True)
    require_greedy(model, prompts, found)
