"""`generate` with a dense cache, on podrt's reference."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

from transformers_support import (  # noqa: E402
    CONFIGS,
    greedy,
    make_model,
    make_prompts,
    require_greedy,
)

import podrt.integrations.transformers as integration  # noqa: E402
from podrt.errors import UnsupportedConfigError  # noqa: E402
from podrt.integrations.transformers.layers import Layer  # noqa: E402
from podrt.policy.policies import Policy  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(CONFIGS["llama"], attn_implementation="podrt")


def generate(model: Any, prompts: list[list[int]], tokens: int, **options: Any) -> list[list[int]]:
    """Generate for prompts that are padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(ids, attention_mask=mask, generation_config=greedy(tokens), **options)
    found: list[list[int]] = out[:, longest:].tolist()
    return found


@pytest.mark.parametrize("lengths", [[40], [30, 30, 30], [40, 3, 17]])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_tokens_are_the_likeliest_ones(model: Any, lengths: list[int], cache: str) -> None:
    prompts = make_prompts(lengths)
    found = generate(model, prompts, 8, cache_implementation=cache, disable_compile=True)
    require_greedy(model, prompts, found)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("llama", "granite")])
@pytest.mark.parametrize("lengths", [[40], [40, 3, 17]])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_windows_caps_and_sinks(name: str, lengths: list[int], cache: str) -> None:
    """Requests outgrow their windows while they generate, and before."""
    model = make_model(CONFIGS[name], attn_implementation="podrt")
    prompts = make_prompts(lengths)
    found = generate(model, prompts, 10, cache_implementation=cache, disable_compile=True)
    require_greedy(model, prompts, found)


def test_padding_on_the_right(model: Any) -> None:
    prompts = make_prompts([12, 30, 7])
    ids = torch.tensor([prompt + [0] * (30 - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (30 - len(p)) for p in prompts])
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        for row, prompt in enumerate(prompts):
            alone = model(torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(together[row, : len(prompt)], alone, atol=0.1, rtol=0.05)


def test_other_masks_are_refused(model: Any) -> None:
    ids = torch.tensor(make_prompts([12]))
    packed = torch.tensor([[*range(5), *range(7)]])
    with torch.no_grad():
        with pytest.raises(UnsupportedConfigError, match="attention_mask: got 4 dimensions"):
            model(ids, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool))
        with pytest.raises(UnsupportedConfigError, match="packed sequences"):
            model(ids, position_ids=packed, use_cache=False)


def test_gradients_are_refused(model: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match="query: requires a gradient"):
        model(torch.tensor(make_prompts([12])))


def test_generate_takes_the_policy_of_enable(monkeypatch: pytest.MonkeyPatch) -> None:
    policies, attention = [], Layer.attention
    monkeypatch.setattr(
        Layer,
        "attention",
        lambda self, device, policy, **kinds: (
            policies.append(policy),
            attention(self, device, policy, **kinds),
        )[1],
    )
    model = make_model(CONFIGS["granite"])  # of a scale of its own: nothing is planned for it yet
    with integration.enable(model, policy="portable"):
        policies.clear()
        generate(model, make_prompts([12]), 2)
        assert policies == [Policy(family="portable")]
