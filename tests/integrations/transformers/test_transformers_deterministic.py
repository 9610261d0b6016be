"""`enable(model, deterministic=True)`: what computes a request is its own, whatever else is there.

On a CPU: every plan of the engine is made again for an H100, by the policy that layers are given.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

from schedule_support import work_of  # noqa: E402
from transformers_support import (  # noqa: E402
    CONFIGS,
    generate_batch,
    greedy,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.errors import UnsupportedConfigError  # noqa: E402
from podrt.gpu.arch import get_arch  # noqa: E402
from podrt.gpu.nominal import H100  # noqa: E402
from podrt.host_attention import HostAttention  # noqa: E402
from podrt.integrations.transformers.layers import Layer  # noqa: E402
from podrt.policy.policies import Policy, parse_policy  # noqa: E402
from podrt.policy.schedule import Scheduler  # noqa: E402
from podrt.reference import execute_plan  # noqa: E402
from podrt.tensors.page_table import make_batch, read_page_table  # noqa: E402

GPU = replace(H100, arch=get_arch("sm_90a"))
#: The longer ones are prefilled in several chunks, beside decodes of the others.
LENGTHS = [20, 150, 33, 90, 2, 60]


class Planned(HostAttention):
    """Exact attention in host memory that notes what computes each request on an H100."""

    def __init__(self, policy: Policy, work: dict[Any, list[Any]], *shape: int, **kinds: Any):
        super().__init__(*shape, **kinds)
        self._scheduler, self._work = Scheduler(self.layer, GPU, policy), work
        self.schedule: Any = None

    def adopt(self, prepared: Any) -> None:
        super().adopt(prepared)
        batch = prepared[0]
        self.schedule = self._scheduler.schedule(batch)
        for request, own in enumerate(zip(batch.q_lens, batch.kv_lens, strict=True)):
            seen = self._work[(self.layer, *map(int, own))]
            if (work := work_of(self.schedule, request)) not in seen:
                seen.append(work)


class Walked(Planned):
    """Attention by walking plans piece by piece, as kernels do: of a step, and of each request.

    Attributes
    ----------
    compared : set of bool
        Whether requests had the same bits alone as in their steps.
    """

    compared: ClassVar[set[bool]] = set()

    def run(self, q: Any, k_cache: Any, v_cache: Any, *, out: Any, sinks: Any) -> Any:
        assert self._planned is not None
        batch, table, _ = self._planned
        assert table is not None
        caches, pages = (k_cache.numpy(), v_cache.numpy()), table.flat()
        found = self._walk(self.schedule, q.numpy(), *caches, pages)
        out.copy_(torch.from_numpy(found))
        for request, (first, end) in enumerate(itertools.pairwise(batch.qo_indptr)):
            of_request = pages[batch.page_begin[request] :][: self._pages_of(request)]
            alone = make_batch(
                np.array([0, end - first], np.int32),
                batch.kv_lens[request : request + 1],
                read_page_table(self.layer.page_size, None, [0, len(of_request)], of_request),
                self.layer.page_size,
            )
            schedule = self._scheduler.schedule(alone)
            same = self._walk(schedule, q[first:end].numpy(), *caches, of_request)
            self.compared.add(same.tobytes() == found[first:end].tobytes())
        return out

    def _pages_of(self, request: int) -> int:
        assert self._planned is not None and self.layer.page_size is not None
        return -(-int(self._planned[0].kv_lens[request]) // self.layer.page_size)

    def _walk(self, schedule: Any, q: Any, k_cache: Any, v_cache: Any, pages: Any) -> Any:
        kinds = {"page_size": self.layer.page_size, "sm_scale": self.layer.sm_scale}
        return execute_plan(schedule.plan, q, k_cache, v_cache, page_table=pages, **kinds)[0]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[Any, list[Any]]:
    """All that ever computed a request of a layer, so many new tokens and so many keys."""
    return watch(monkeypatch, Planned)


def watch(monkeypatch: pytest.MonkeyPatch, kind: type[Planned]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)

    def attention(layer: Layer, device: Any, policy: Any, **where: Any) -> Any:
        kinds = layer._asdict()
        shape = [kinds.pop(name) for name in ("num_qo_heads", "num_kv_heads", "head_dim")]
        chosen = parse_policy(policy)
        return kind(chosen, found, *shape, **{"kv_layout": "NHD"} | kinds | where)

    monkeypatch.setattr(Layer, "attention", attention)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
@pytest.mark.parametrize("policy", ["auto", "portable-serial"])
def test_a_request_has_the_same_work_alone_and_in_any_step(
    name: str, policy: str, work: dict[Any, list[Any]]
) -> None:
    model, prompts = make_model(CONFIGS[name]), make_prompts(LENGTHS)
    with integration.enable(model, policy=policy, deterministic=True):
        found = generate_batch(model, prompts, 8)
        for prompt in prompts[:2]:
            generate_batch(model, [prompt], 8)
        assert all(len(each) == 1 for each in work.values())
    require_greedy(model, prompts, found)
    assert {q_len for _, q_len, _ in work} > {1, 2, 20, 32}


def test_without_it_the_rest_of_the_step_matters(work: dict[Any, list[Any]]) -> None:
    model = make_model(CONFIGS["llama"])
    with integration.enable(model):
        for prompts in (make_prompts(LENGTHS), make_prompts(LENGTHS[:1])):
            generate_batch(model, prompts, 8)
    assert any(len(each) > 1 for each in work.values())


def test_a_request_has_the_same_bits_alone_as_in_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same queries, keys and values, which the engine's own products may round otherwise."""
    watch(monkeypatch, Walked)
    monkeypatch.setattr(Walked, "compared", set())
    model, prompts = make_model(CONFIGS["llama"], torch.float16), make_prompts([30, 400, 7])
    with integration.enable(model, deterministic=True):
        found = generate_batch(model, prompts, 2, max_batch_tokens=128)
    require_greedy(model, prompts, found)
    assert Walked.compared == {True}


def test_generate_is_served_alike(work: dict[Any, list[Any]]) -> None:
    model = make_model(CONFIGS["qwen2"], attn_implementation="podrt")
    prompts = make_prompts([40, 17])
    with integration.enable(model, deterministic=True):
        ids = torch.tensor([prompts[0], [0] * 23 + prompts[1]])
        mask = torch.tensor([[1] * 40, [0] * 23 + [1] * 17])
        model.generate(ids, attention_mask=mask, generation_config=greedy(8))
        for prompt in prompts:
            model.generate(torch.tensor([prompt]), generation_config=greedy(8))
    assert work
    assert all(len(each) == 1 for each in work.values())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"policy": "autotuned"}, UnsupportedConfigError, "autotuned=True.*deterministic=True"),
        ({"fallback": "sdpa"}, UnsupportedConfigError, "fallback='sdpa'.*deterministic=True"),
        ({"shared_prefixes": True}, UnsupportedConfigError, "who shares keys.*deterministic=True"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: Any, error: Any, said: str) -> None:
    model = make_model(CONFIGS["llama"])
    with pytest.raises(error, match=said):
        integration.enable(model, deterministic=True, **options)
    with pytest.raises(TypeError, match="deterministic=1"):
        integration.enable(model, deterministic=1)
    assert not integration.status(model).enabled
