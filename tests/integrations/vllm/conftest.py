"""vLLM's configuration, and builders, where vLLM is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What podrt asks of vLLM's configuration."""
    import torch
    from backend_support import MODEL

    from podrt.integrations.vllm import backend, impl

    config = SimpleNamespace(
        additional_config={},
        cache_config=SimpleNamespace(block_size=16, enable_prefix_caching=False),
        compilation_config=SimpleNamespace(static_forward_context={}),
        model_config=SimpleNamespace(model=MODEL, max_model_len=512, dtype=torch.float16),
        parallel_config=SimpleNamespace(use_ubatching=False),
        scheduler_config=SimpleNamespace(
            max_num_seqs=8, max_num_batched_tokens=256, enable_chunked_prefill=False
        ),
        speculative_config=None,
    )
    for module in (impl, backend):
        monkeypatch.setattr(module, "get_current_vllm_config_or_none", lambda: config)
    return config


@pytest.fixture
def make_builder(monkeypatch: pytest.MonkeyPatch, config: Any) -> Any:
    """From scales and windows of layers to a builder whose attentions note what they are told."""
    import torch
    from backend_support import Recording, impl_of
    from vllm.model_executor.layers.attention import Attention

    from podrt.integrations.vllm import attention
    from podrt.integrations.vllm.builder import PodrtMetadataBuilder

    monkeypatch.setattr(attention, "HybridAttention", Recording)

    def make(
        *scales: float,
        windows: tuple[int | None, ...] = (None, None, None),
        v_head_dim: int = 64,
    ) -> Any:
        names = []
        for number, scale in enumerate(scales or (0.125, 0.125)):
            layer = Attention.__new__(Attention)
            layer.__dict__["impl"] = impl_of(scale=scale, sliding_window=windows[number])
            layer.__dict__.update(head_size=64, head_size_v=v_head_dim)
            names.append(f"layers.{number}")
            config.compilation_config.static_forward_context[names[-1]] = layer
        spec = SimpleNamespace(block_size=32)
        return PodrtMetadataBuilder(spec, names, config, torch.device("cuda:3"))

    return make
