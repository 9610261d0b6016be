"""Continuous batching and `generate` of small real models on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")

from transformers_support import (  # noqa: E402
    CONFIGS,
    batching_config,
    generate_batch,
    greedy,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.attention import HybridAttention  # noqa: E402
from podrt.integrations.transformers.engine import Engine  # noqa: E402
from podrt.tensors import shared_prefixes  # noqa: E402

pytestmark = pytest.mark.gpu
LENGTHS = [5, 40, 170, 700, 1, 64, 33]


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model(CONFIGS["llama"], device="cuda")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("graphs", [False, True])
def test_tokens_are_the_likeliest_ones(name: str, graphs: bool) -> None:
    model, prompts = make_model(CONFIGS[name], device="cuda"), make_prompts(LENGTHS)
    with integration.enable(model):
        found = generate_batch(
            model, prompts, 24, max_batch_tokens=256, num_blocks=128, use_cuda_graph=graphs
        )
        kernels = integration.status(model).kernels
    assert kernels and all("hopper" in k or "portable" in k for k in kernels)
    require_greedy(model, prompts, found)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("batching", [{"max_requests_per_batch": 3}, {"num_blocks": 60}])
def test_graphs_serve_requests_that_come_and_go(
    llama: Any, overlapping: bool, batching: dict[str, int]
) -> None:
    prompts = make_prompts([33, 4, 260, 18, 147, 2, 90], shared=1)
    options = {"max_batch_tokens": 128, "num_blocks": 128, **batching}
    with integration.enable(llama):
        found = generate_batch(
            llama, prompts, 40, use_cuda_graph=True, use_async_batching=overlapping, **options
        )
    require_greedy(llama, prompts, found)


@pytest.mark.parametrize("graphs", [False, True])
def test_deterministic_plans(llama: Any, graphs: bool) -> None:
    prompts, options = make_prompts(LENGTHS), {"max_batch_tokens": 256, "num_blocks": 128}
    kernels, served = set(), []
    with integration.enable(llama, deterministic=True):
        for some in (prompts, prompts[:1]):
            found = generate_batch(llama, some, 24, use_cuda_graph=graphs, **options)
            kernels.add(integration.status(llama).kernels)
            served.append((some, found))
    for some, found in served:  # of a model that is enabled no copy can be made
        require_greedy(llama, some, found)
    assert len(kernels) == 1  # that of mixed steps, whatever the step


def test_requests_share_the_pages_of_a_prefix(llama: Any) -> None:
    prompts = make_prompts([270, 266, 280, 250], shared=240)
    with integration.enable(llama):
        found = generate_batch(
            llama, prompts, 16, allow_block_sharing=True, max_batch_tokens=64, num_blocks=128
        )
    require_greedy(llama, prompts, found)


@pytest.mark.parametrize("name", ["llama", "gpt-oss", "gemma2"])
@pytest.mark.parametrize("graphs", [False, True])
def test_keys_of_a_prefix_are_read_once(
    monkeypatch: pytest.MonkeyPatch, name: str, graphs: bool
) -> None:
    """Beside prefills, by decodes that come and go; layers with a window are as ever."""
    seen, adopt = [], HybridAttention.adopt

    def noting(self: HybridAttention, prepared: Any) -> None:
        adopt(self, prepared)
        seen.append((self.layer.mask.window_left, self.shared_prefixes))

    monkeypatch.setattr(shared_prefixes, "_LEAST_SAVED_KEYS", 1)
    monkeypatch.setattr(shared_prefixes, "_LEAST_SAVED_A_TOKEN", 0)
    monkeypatch.setattr(HybridAttention, "adopt", noting)
    model = make_model(CONFIGS[name], device="cuda")
    prompts = make_prompts([270, 266, 280, 250, 245, 300, 260], shared=240)
    with integration.enable(model, shared_prefixes=True):
        found = generate_batch(
            model,
            prompts,
            16,
            allow_block_sharing=True,
            max_batch_tokens=64,
            num_blocks=160,
            use_cuda_graph=graphs,
        )
    require_greedy(model, prompts, found)
    assert any(prefixes for window, prefixes in seen if window is None)
    assert not any(prefixes for window, prefixes in seen if window is not None)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("where", ["plan", "run"])
def test_a_step_that_fails_leaves_the_engine_and_the_other_requests_running(
    llama: Any, monkeypatch: pytest.MonkeyPatch, where: str, graphs: bool, overlapping: bool
) -> None:
    inner, failed = getattr(Engine, where), []

    def failing(self: Engine, *arguments: Any) -> Any:
        if is_serving and not failed:
            failed.append(where)
            raise MemoryError("no room for the step")
        return inner(self, *arguments)

    is_serving = False
    monkeypatch.setattr(Engine, where, failing)
    first, *others = make_prompts([90, 20, 147])
    options = {"use_cuda_graph": graphs, "use_async_batching": overlapping}
    with integration.enable(llama):
        manager = llama.init_continuous_batching(
            greedy(12), batching_config(max_batch_tokens=128, num_blocks=128, **options)
        )
        manager.warmup()
        is_serving = True
        manager.start()
        manager.add_request(first, max_new_tokens=12)
        result = manager.get_result(timeout=60)
        names = manager.add_requests(others, max_new_tokens=12)
        results = [manager.get_result(timeout=60) for _ in names]
        manager.stop(block=True)
    assert "no room for the step" in str(result.error)
    assert failed == [where]
    tokens = {each.request_id: each.generated_tokens for each in results}
    require_greedy(llama, others, [tokens[name] for name in names])


@pytest.mark.parametrize("graphs", [False, True])
def test_memory_of_a_call_is_given_back(llama: Any, graphs: bool) -> None:
    """The engine's cache takes a share of what is free: a call would leave less to the next."""
    with integration.enable(llama):
        left = []
        for _ in range(4):
            llama.generate_batch(
                make_prompts([90, 20]),
                generation_config=greedy(4),
                continuous_batching_config=batching_config(
                    max_memory_percent=0.3, num_blocks=None, use_cuda_graph=graphs
                ),
                progress_bar=False,
            )
            left.append(torch.cuda.mem_get_info()[0])
    # The first call leaves kernels and libraries behind.
    assert left[-1] >= left[1] - (256 << 20)


@pytest.mark.parametrize("lengths", [[400], [30, 30, 30], [40, 3, 170]])
def test_generate(lengths: list[int]) -> None:
    model = make_model(CONFIGS["llama"], device="cuda", attn_implementation="podrt")
    prompts = make_prompts(lengths)
    longest = max(lengths)
    rows = [[0] * (longest - len(p)) + p for p in prompts]
    masks = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    ids, mask = (torch.tensor(each, device="cuda") for each in (rows, masks))
    out = model.generate(ids, attention_mask=mask, generation_config=greedy(24))
    require_greedy(model, prompts, out[:, longest:].tolist())
