"""What is hooked for CUDA graphs, in whose replays no Python of a layer runs."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

from transformers_graphs import record_graphs  # noqa: E402
from transformers_support import (  # noqa: E402
    CONFIGS,
    batching_config,
    greedy,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.integrations.transformers.engine import Engine  # noqa: E402

PROMPTS = make_prompts([40, 7, 70, 19])


def serve(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[Any]]:
    """Generate 20 tokens for all prompts; return them, and the graphs."""
    manager = model.init_continuous_batching(greedy(20), batching_config(q_padding_interval_size=8))
    manager.warmup()
    graphs = record_graphs(monkeypatch, manager.batch_processor)
    names = manager.add_requests(PROMPTS, max_new_tokens=20)
    manager.start()
    results: dict[str, Any] = {}
    while len(results) < len(names):
        result = manager.get_result(timeout=60)
        results[result.request_id] = result
    manager.stop()
    return [results[name].generated_tokens for name in names], graphs


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_replays_compute_the_batch_of_their_step(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = make_model(CONFIGS[name])
    with integration.enable(model) as enabled:
        tokens, graphs = serve(model, monkeypatch)
        steps = enabled.status().steps
    require_greedy(model, PROMPTS, tokens)
    # One for each padded number of tokens, whatever the keys: 8, 32, and what lies between.
    assert 2 <= len(graphs) <= 4
    assert sum(graph.replays for graph in graphs) == steps - len(graphs)


def test_a_plan_that_is_left_stale_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(CONFIGS["llama"])
    plan, plans = Engine.plan, []

    def plan_the_first(self: Engine, states: Any, stream: Any) -> None:
        plans.append(states)
        if len(plans) <= 6:
            plan(self, states, stream)

    monkeypatch.setattr(Engine, "plan", plan_the_first)
    with integration.enable(model):
        tokens, _ = serve(model, monkeypatch)
    with pytest.raises(AssertionError):
        require_greedy(model, PROMPTS, tokens)
