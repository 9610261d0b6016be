"""The engine that is measured: a Llama-like model with random weights, in one of the modes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podrt.workloads.lengths import parse_heads

MODES = ("EAGER", "FULL", "BREAKABLE", "FULL_AND_PIECEWISE")
#: Padded numbers of tokens of FULL and BREAKABLE, as far as the largest budget.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)


def make_engine(
    options: argparse.Namespace,
    backend: str,
    mode: str,
    tensor_parallel: int,
    budget: int,
    longest: int,
) -> Any:
    """Return vLLM's engine for steps of up to `budget` tokens, requests of up to `longest`.

    `options` are those of the command line of `podrt.bench.serving.vllm`.
    """
    from vllm import LLM

    _announce_plugin()
    if options.split_write and backend == "PODRT":
        _split_writes()
    folder = Path(tempfile.mkdtemp()) / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_model(options, longest + 64)))
    engine = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=options.dtype,
        enforce_eager=mode == "EAGER",
        max_model_len=longest + 16,
        max_num_batched_tokens=budget,
        max_num_seqs=options.sequences,
        block_size=options.block_size,
        tensor_parallel_size=tensor_parallel,
        disable_custom_all_reduce=True,
        enable_prefix_caching=False,
        seed=0,
        kv_cache_memory_bytes=int(options.cache_gib * 2**30),
        disable_log_stats=True,
        compilation_config=_compilation(mode, budget),
        attention_backend=backend,
        speculative_config=_drafts(options.drafts),
        additional_config={"podrt": {"policy": options.policy}} if backend == "PODRT" else {},
    )
    engine.collective_rpc(_give_weights)
    return engine


def _compilation(mode: str, budget: int) -> dict[str, Any]:
    if mode == "FULL_AND_PIECEWISE":
        return {"cudagraph_mode": mode}
    graphs = {"EAGER": "NONE", "FULL": "FULL", "BREAKABLE": "FULL_AND_PIECEWISE"}[mode]
    found: dict[str, Any] = {"mode": 0, "cudagraph_mode": graphs, "custom_ops": ["all"]}
    if mode != "EAGER":
        found["cudagraph_capture_sizes"] = sorted({*(s for s in _SIZES if s < budget), budget})
    return found


def _drafts(tokens: int) -> dict[str, Any] | None:
    if not tokens:
        return None
    lookup = {"prompt_lookup_max": 2, "prompt_lookup_min": 1}
    return {"method": "ngram", "num_speculative_tokens": tokens, **lookup}


def _model(options: argparse.Namespace, positions: int) -> dict[str, Any]:
    heads, kv_heads = parse_heads(options.heads)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "head_dim": options.head_dim,
        "intermediate_size": options.hidden * 7 // 2,
        "num_hidden_layers": options.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": options.dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _give_weights(worker: Any) -> None:
    """Give the model weights among which argmax has something to decide; dummies are too small.

    Matrices are made whole and loaded as from a file, so that all numbers of GPUs serve one model.
    """
    import torch

    model = worker.model_runner.model
    device, dtype = (getattr(next(model.parameters()), name) for name in ("device", "dtype"))
    generator = torch.Generator(device).manual_seed(1)

    def weights() -> Iterator[tuple[str, Any]]:
        for name, shape in _matrices(model.config):
            matrix = torch.empty(shape, dtype=dtype, device=device)
            scale = 1.0 if "embed" in name else shape[1] ** -0.5
            yield name, matrix.normal_(0.0, scale, generator=generator)

    with torch.no_grad():
        model.load_weights(weights())


def _matrices(config: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name the matrices of a Llama as its files do, with their shapes."""
    hidden, between = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    yield "lm_head.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        for name, shape in (
            ("self_attn.q_proj", (heads, hidden)),
            ("self_attn.k_proj", (kv_heads, hidden)),
            ("self_attn.v_proj", (kv_heads, hidden)),
            ("self_attn.o_proj", (hidden, heads)),
            ("mlp.gate_proj", (between, hidden)),
            ("mlp.up_proj", (between, hidden)),
            ("mlp.down_proj", (hidden, between)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape


def _announce_plugin() -> None:
    """Let vLLM, in all its processes, find the plugin of a checkout that is not installed."""
    from importlib.metadata import entry_points

    group = "vllm.general_plugins"
    if entry_points(group=group, name="podrt"):
        return
    folder = Path(tempfile.mkdtemp())
    info = folder / "podrt-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: podrt\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        f"[{group}]\npodrt = podrt.integrations.vllm.plugin:register\n"
    )
    sys.path.insert(0, str(folder))
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def _split_writes() -> None:
    from podrt.integrations.vllm.backend import PodrtBackend
    from podrt.integrations.vllm.impl import PodrtImpl

    PodrtImpl.writes_in_forward = PodrtBackend.forward_includes_kv_cache_update = False
