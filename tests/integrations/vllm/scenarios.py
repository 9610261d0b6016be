"""Runs vLLM's engine on a CPU, with podrt's backend and a tiny model, and prints what came out.

    scenarios.py RUNNER SCENARIO ...

A process each for model runner 1 and 2. A line of JSON for each scenario: its tokens, and what was
counted on the way. A scenario is a mode of graphs and a workload, such as ``FULL:preempted``;
``:stale`` leaves the first plan in place. The workload ``invariant`` sets VLLM_BATCH_INVARIANT,
``deterministic`` podrt's own option.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from typing import Any

RUNNER = sys.argv[1]
os.environ.update(
    VLLM_USE_V2_MODEL_RUNNER=str(int(RUNNER) - 1),
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    VLLM_USE_FLASHINFER_SAMPLER="0",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_PLUGINS="",
)
if any(scenario.startswith("BREAKABLE") for scenario in sys.argv[2:]):
    os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] = "1"

import pretend_cuda

pretend_cuda.install()

import recorded_graphs
import torch
import vllm
import vllm.envs as envs

pretend_cuda.after_vllm()

from host_attention import HostAttention

import podrt.integrations.vllm.attention as glue
from podrt.cache_write import write_cache
from podrt.integrations.vllm import impl, plugin, status

VOCABULARY, PROMPT, GENERATED, BUDGET, REQUESTS, BLOCK = 128, 40, 12, 24, 4, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "head_dim": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


#: Alternately a window, which is shorter than prompts, and none: cache groups of their own.
WINDOWS = CONFIG | {
    "sliding_window": 17,
    "layer_types": ["sliding_attention", "full_attention"],
}


def make_engine(backend: str, mode: str, workload: str) -> Any:
    """Return an engine for the tiny model, its weights random but always the same."""
    folder = os.path.join(tempfile.mkdtemp(), "model")
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(WINDOWS if workload == "windows" else CONFIG, file)
    options: dict[str, Any] = {}
    if workload == "drafted":
        options["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": 2,
            "prompt_lookup_max": 2,
            "prompt_lookup_min": 1,
        }
    if workload == "deterministic":
        options["additional_config"] = {"podrt": {"deterministic": True}}
    is_invariant, longest = workload == "invariant", PROMPT + GENERATED + 16
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(is_invariant))
    envs.disable_envs_cache()
    graphs = {"EAGER": "NONE", "BREAKABLE": "FULL_AND_PIECEWISE"}.get(mode, mode)
    engine = vllm.LLM(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="float16",
        enforce_eager=mode == "EAGER",
        max_model_len=longest,
        max_num_batched_tokens=2 * longest if is_invariant else BUDGET,
        enable_chunked_prefill=not is_invariant,
        max_num_seqs=REQUESTS,
        block_size=BLOCK,
        # Too few blocks for all requests at once: some are preempted.
        num_gpu_blocks_override=14 if workload == "preempted" else 40,
        enable_prefix_caching=False,
        seed=0,
        kv_cache_memory_bytes=4 << 20,
        disable_log_stats=True,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": graphs,
            "cudagraph_capture_sizes": [1, 2, 4, 8, 16, BUDGET],
            "custom_ops": ["none"],
        },
        attention_config={"backend": backend},
        **options,
    )
    generator = torch.Generator()
    generator.manual_seed(1)
    worker = engine.llm_engine.model_executor.driver_worker.worker
    with torch.no_grad():
        for name, weight in worker.model_runner.model.named_parameters():
            if weight.ndim == 2:  # dummy ones are too small for argmax to have much to decide
                values = torch.randn(weight.shape, generator=generator)
                scale = 1.0 if "embed" in name else weight.shape[1] ** -0.5
                weight.copy_((values * scale).to(weight.dtype))
    return engine


def watch_steps(engine: Any) -> dict[str, int]:
    """Count steps, those that mix prefill and decode, preemptions and scheduled drafts."""
    counted = dict.fromkeys(("steps", "mixed", "preempted", "drafted"), 0)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    schedule = scheduler.schedule

    def counting(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        lengths = output.num_scheduled_tokens.values()
        counted["steps"] += bool(lengths)
        # A decode has one token, and drafts beside it.
        counted["mixed"] += min(lengths, default=1) <= 3 < max(lengths, default=1)
        counted["preempted"] += len(output.preempted_req_ids or ())
        counted["drafted"] += sum(map(len, output.scheduled_spec_decode_tokens.values()))
        return output

    scheduler.schedule = counting
    return counted


def prompts() -> list[Any]:
    """Four prompts; they repeat themselves, for drafts to be found."""
    generator = torch.Generator()
    generator.manual_seed(2)
    some = torch.randint(3, VOCABULARY, (REQUESTS, PROMPT // 2), generator=generator)
    return [{"prompt_token_ids": row.tolist() * 2} for row in some]


def run(scenario: str) -> dict[str, Any]:
    """Generate with podrt's backend."""
    gc.collect()
    gc.freeze()  # vLLM collects garbage often, mostly going through what was imported
    mode, workload, *stale = scenario.split(":")
    backend = plugin.NAME
    if mode == "TRITON":
        mode, backend = "EAGER", "TRITON_ATTN"
    engine = make_engine(backend, mode, workload)
    counted = watch_steps(engine)
    recorded_graphs.counts["replayed"] = 0
    HostAttention.keep_first_plan = bool(stale)
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=GENERATED,
        min_tokens=GENERATED,
        ignore_eos=True,
        detokenize=False,
    )
    HostAttention.work.clear()
    HostAttention.num_grown = 0
    outputs = engine.generate(prompts(), sampling, use_tqdm=False)
    if workload in ("invariant", "deterministic"):
        for prompt in prompts()[:2]:  # and alone
            engine.generate([prompt], sampling, use_tqdm=False)
    HostAttention.keep_first_plan = False
    return {
        "scenario": scenario,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        **counted,
        **recorded_graphs.counts,
        "served": status(),
        "grown": HostAttention.num_grown,
        "work": max(map(len, HostAttention.work.values()), default=0),
    }


def main() -> None:
    """Run the scenarios that were asked for."""
    plugin.register()
    glue.HybridAttention = HostAttention
    impl.write_cache = lambda *args: recorded_graphs.record(lambda captured: write_cache(*args))
    for scenario in sys.argv[2:]:
        try:
            print("RESULT " + json.dumps(run(scenario)), flush=True)
        except Exception as error:
            import traceback

            traceback.print_exc()
            print(
                "RESULT " + json.dumps({"scenario": scenario, "error": repr(error)[:500]}),
                flush=True,
            )


if __name__ == "__main__":
    main()
