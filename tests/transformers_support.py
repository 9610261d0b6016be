"""Small models of real architectures, and what their greedy tokens must satisfy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.generation.configuration_utils import ContinuousBatchingConfig

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "granite": GraniteConfig(**SIZES, attention_multiplier=0.1),
    # Windows of some layers or all, shorter than most requests; soft-caps, sinks.
    "mistral with a window": MistralConfig(**SIZES, sliding_window=24),
    "phi3 with a window": Phi3Config(
        **{**SIZES, "head_dim": 96}, sliding_window=33, pad_token_id=0
    ),
    "gemma2": Gemma2Config(**SIZES, sliding_window=20, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=17, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt-oss": GptOssConfig(**SIZES, sliding_window=16, num_local_experts=2, num_experts_per_tok=1),
}


def make_model(config: Any, dtype: Any = torch.bfloat16, device: str = "cpu", **kwargs: Any) -> Any:
    """Return a model whose random weights give its logits something to decide."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, **kwargs)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5)
            if name.endswith("sinks"):
                weight.normal_(1, 2)
    return model.to(dtype).to(device).eval()


def make_prompts(lengths: list[int], shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Return random prompts; the first tokens of all are the same."""
    random = torch.Generator().manual_seed(seed)
    prefix = torch.randint(1, 97, (shared,), generator=random).tolist()
    tails = (torch.randint(1, 97, (n - shared,), generator=random).tolist() for n in lengths)
    return [prefix + tail for tail in tails]


def greedy(tokens: int) -> GenerationConfig:
    """Return how to generate so many tokens."""
    return GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )


def batching_config(**batching: Any) -> ContinuousBatchingConfig:
    """Return a small cache and small batches, with what is given in their place."""
    options = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 32}
    return ContinuousBatchingConfig(**{"max_requests_per_batch": 8, **options, **batching})


def generate_batch(model: Any, prompts: list[list[int]], tokens: int, **batching: Any) -> Any:
    """Return the tokens that continuous batching generates for each prompt."""
    results = model.generate_batch(
        prompts,
        generation_config=greedy(tokens),
        continuous_batching_config=batching_config(**batching),
        progress_bar=False,
    )
    found = [result.generated_tokens for result in results.values()]
    assert [len(each) for each in found] == [tokens] * len(prompts)
    return found


@torch.no_grad()
def require_greedy(model: Any, prompts: list[list[int]], generated: list[list[int]]) -> None:
    """Check that each token is the likeliest, as far as float32 settles it.

    The model's own eager attention in its dtype tells how far logits may be off.
    """
    exact = copy.deepcopy(model).float()
    for each in (exact, rounded := copy.deepcopy(model)):
        each.set_attn_implementation("eager")
    for prompt, tokens in zip(prompts, generated, strict=True):
        ids = torch.tensor([prompt + tokens], device=model.device)
        rows = slice(len(prompt) - 1, -1)
        logits = exact(ids).logits[0, rows]
        off = (rounded(ids).logits[0, rows].float() - logits).abs().max()
        chosen = logits.gather(1, torch.tensor(tokens, device=model.device)[:, None])[:, 0]
        assert (logits.max(1).values - chosen).max() <= 3 * off, (tokens, off)
