"""Registration, what is refused and how, and one plan for each step: in the real package."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm.version", reason="needs vllm: make vllm-test")

import torch
from backend_support import LIMITS, MODEL, common, impl_of
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts
from vllm.v1.worker.utils import select_common_block_size

from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm import plugin, status
from podrt.integrations.vllm.backend import PodrtBackend, require_version
from podrt.integrations.vllm.group import LayerShape, limits_of
from podrt.integrations.vllm.impl import PodrtImpl
from podrt.policy.policies import Policy

pytestmark = pytest.mark.usefixtures("config")

# Registration.


def test_registered_once_however_often_it_is_asked_for() -> None:
    for _ in range(2):
        plugin.register()
    assert AttentionBackendEnum["PODRT"].get_class() is PodrtBackend
    assert PodrtBackend.get_name() == "PODRT"


@pytest.mark.parametrize("version", ["0.33.0", "0.33.1", "0.33.1.dev3+g12", "0.33.0+cpu"])
def test_releases_of_the_interface_are_taken(version: str) -> None:
    require_version(version)


@pytest.mark.parametrize("version", ["0.32.9", "0.34.0", "1.33.0"])
def test_other_releases_are_refused_by_number(version: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"vllm=={version}.*install vllm==0.33"):
        require_version(version)


# What is refused.


def reasons(**changes: Any) -> str:
    asked = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": DeviceCapability(9, 0),
        "attn_type": AttentionType.DECODER,
    } | changes
    return "; ".join(PodrtBackend.validate_configuration(**asked))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.float16, "head_size": 64},
        {"head_size": 256},
        {"head_size": 96},
        {"block_size": 48},
        {"block_size": None},
        {"device_capability": DeviceCapability(8, 0)},
        {"has_sliding_window": True},
        {"has_sink": True},
        {"use_batch_invariant": True},
    ],
)
def test_what_podrt_serves(changes: dict[str, Any]) -> None:
    assert reasons(**changes) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_size": 100}, "'head_size': 100"),
        ({"dtype": torch.float32}, "'dtype': torch.float32"),
        ({"kv_cache_dtype": "fp8"}, "'kv_cache_dtype': 'fp8'"),
        ({"block_size": 8}, "'block_size': 8"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "encoder_only"),
        ({"use_mla": True}, "MLA"),
        ({"use_non_causal": True}, "non-causal"),
        ({"use_adaptive_verification": True}, "query lens mismatch"),
        ({"use_dcp": True}, "DCP"),
        ({"device_capability": DeviceCapability(7, 5)}, "compute capability"),
    ],
)
def test_what_podrt_does_not_serve_is_refused_by_name(changes: Any, words: str) -> None:
    said = reasons(**changes)
    assert words in said
    assert MODEL in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alibi_slopes", [0.5] * 8),
        ("sinks.shape", torch.zeros(2)),
        ("attn_type", AttentionType.ENCODER),
        ("kv_cache_dtype", "fp8"),
        ("head_size", 100),
    ],
)
def test_layers_that_podrt_cannot_compute_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match=rf"{MODEL}.*{name}="):
        impl_of(**{name.partition(".")[0]: value})


def test_windows_and_soft_caps_are_of_the_shape() -> None:
    shape = impl_of(sliding_window=4096, logits_soft_cap=30.0).shape
    assert (shape.window_left, shape.logits_soft_cap) == (4095, 30.0)


def test_a_soft_cap_of_zero_is_none() -> None:
    assert impl_of(logits_soft_cap=0.0).shape == LayerShape(8, 2, 64, 0.125)


def test_quantised_outputs_are_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="output_scale"):
        impl_of().forward(None, None, None, None, None, object(), None, output_scale=1.0)


# Blocks and layouts.


@pytest.mark.parametrize(("block", "kernel"), [(16, 16), (48, 16), (64, 64), (96, 32), (512, 256)])
def test_blocks_are_divided_into_pages_of_the_kernels(block: int, kernel: int) -> None:
    assert select_common_block_size(block, [PodrtBackend]) == kernel


def test_the_layout_of_vllm_by_default_is_the_first_choice() -> None:
    layouts = [layout.name for layout in get_supported_kv_cache_layouts([PodrtBackend])]
    assert layouts[0] == "LBNHC"
    assert "LHBNC" not in layouts


# Limits.


def test_limits_hold_every_step_of_the_scheduler(config: Any) -> None:
    assert limits_of(config) == LIMITS
    config.use_v2_model_runner = True
    config.speculative_config = SimpleNamespace(num_speculative_tokens=3, parallel_drafting=False)
    assert limits_of(config).max_decode_tokens == 4


# Plans.


def test_one_object_is_reserved_for_layers_that_are_alike(make_builder: Any) -> None:
    builder = make_builder()
    (attention,) = builder.attentions.values()
    assert attention.shape == (8, 2, 64)
    assert attention.limits == LIMITS
    assert attention.options == {
        "page_size": 32,
        "dtype": "float16",
        "sm_scale": 0.125,
        "window_left": None,
        "logits_soft_cap": None,
        "policy": Policy(head_pairs=False),
        "deterministic": False,
        "device": 3,
    }
    assert builder.get_cudagraph_support(None, None) is AttentionCGSupport.ALWAYS
    assert builder.describe() in [[entry] for entry in status()]


def test_layers_of_another_scale_have_their_own(make_builder: Any) -> None:
    builder = make_builder(0.125, 0.25, 0.125)
    assert [shape.scale for shape in builder.attentions] == [0.125, 0.25]
    metadata = builder.build(0, common())
    found = metadata.attention_of(LayerShape(8, 2, 64, 0.25))
    assert found.options["sm_scale"] == 0.25
    assert [len(attention.plans) for attention in builder.attentions.values()] == [1, 1]


def test_layers_with_a_window_have_a_plan_of_their_own(make_builder: Any) -> None:
    builder = make_builder(0.125, 0.125, 0.125, windows=(16, None, 16))
    assert [a.options["window_left"] for a in builder.attentions.values()] == [15, None]
    builder.build(0, common())
    assert [len(attention.plans) for attention in builder.attentions.values()] == [1, 1]


def test_a_step_is_planned_within_the_models_length(make_builder: Any) -> None:
    builder, step = make_builder(), common()
    metadata = builder.build(0, step)
    (attention,) = builder.attentions.values()
    ((qo_indptr, kv_lens, tables),) = attention.plans
    assert qo_indptr.tolist() == [0, 5, 6, 6]
    assert (kv_lens.tolist(), kv_lens.dtype) == ([40, 512, 0], np.int32)
    assert tables["block_table"].shape == (3, 16)
    assert tables["device_kv_lens"] is step.seq_lens
    assert metadata.slot_mapping is step.slot_mapping
    assert not metadata.decodes_only


def test_lengths_that_the_host_does_not_know_are_bounded_by_the_longest(make_builder: Any) -> None:
    builder = make_builder()
    builder.build(0, common(seq_lens_cpu_upper_bound=None))
    (attention,) = builder.attentions.values()
    assert attention.plans[0][1].tolist() == [40, 40, 40]


@pytest.mark.parametrize(("longest", "decodes_only"), [(1, True), (2, True), (3, False)])
def test_graphs_of_decodes_are_for_decodes(
    make_builder: Any, longest: int, decodes_only: bool
) -> None:
    builder = make_builder()
    metadata = builder.build_for_cudagraph_capture(common(max_query_len=longest))
    assert metadata.decodes_only is decodes_only
    (attention,) = builder.attentions.values()
    assert len(attention.plans) == 1  # it also comes before replays


def test_metadata_of_an_earlier_step_is_refused(make_builder: Any) -> None:
    builder = make_builder()
    old = builder.build(0, common())
    builder.build(0, common())
    with pytest.raises(RuntimeError, match=r"step 1 .* step 2"):
        old.attention_of(LayerShape(8, 2, 64, 0.125))


def test_attention_that_is_not_causal_is_refused(make_builder: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"{MODEL}.*causal=False"):
        make_builder().build(0, common(causal=False))


def test_microbatches_are_refused(make_builder: Any, config: Any) -> None:
    config.parallel_config.use_ubatching = True
    with pytest.raises(UnsupportedConfigError, match=f"{MODEL}.*enable_dbo"):
        make_builder()


# One layer.


def run_layer(builder: Any, **changes: Any) -> tuple[Any, Any]:
    """Run a layer whose new keys and values go to places 1 and 35; return cache and output."""
    slots = torch.tensor([1, -1, 35], dtype=torch.int64)
    metadata = builder.build(0, common(slot_mapping=slots))
    cache = torch.zeros((4, 2, 32, 128), dtype=torch.float16)
    q = torch.ones((8, 8, 64), dtype=torch.float16)
    key, value = torch.ones((8, 2, 64)).half(), 2 * torch.ones((8, 2, 64)).half()
    out = torch.zeros_like(q)
    layer = impl_of(**changes)
    assert layer.forward(None, q, key, value, cache, metadata, out) is out
    return cache, out


def test_a_layer_writes_its_keys_and_values_where_it_reads_them(make_builder: Any) -> None:
    builder = make_builder()
    cache, out = run_layer(builder)
    written = cache.permute(0, 2, 1, 3)[[0, 1], [1, 3]]
    assert (written[..., :64] == 1).all() and (written[..., 64:] == 2).all()
    assert cache.count_nonzero() == written.numel()
    (attention,) = builder.attentions.values()
    ((tensors, options),) = attention.runs
    _, keys, values = tensors
    assert keys.shape == values.shape == (4, 32, 2, 64)
    assert keys.data_ptr() == cache.data_ptr()
    assert values.data_ptr() == cache.data_ptr() + 128
    assert options == {"out": out, "sinks": None, "decodes_only": False}


def test_sinks_stay_where_graphs_read_them_when_weights_are_loaded_again(
    make_builder: Any,
) -> None:
    builder, sinks = make_builder(), torch.ones(8, dtype=torch.bfloat16)
    layer = impl_of(sinks=torch.nn.Parameter(sinks, requires_grad=False))
    addresses = []
    for value in (1.0, 2.0):
        layer._loaded_sinks.fill_(value)
        layer.process_weights_after_loading(torch.float16)
        metadata = builder.build(0, common())
        cache, q = torch.zeros((4, 2, 32, 128)).half(), torch.ones((8, 8, 64)).half()
        layer.forward(None, q, None, None, cache, metadata, torch.zeros_like(q))
        (attention,) = builder.attentions.values()
        found = attention.runs[-1][1]["sinks"]
        assert found.dtype == torch.float32
        assert (found == value).all()
        addresses.append(found.data_ptr())
    assert len(set(addresses)) == 1


def test_values_narrower_than_keys_are_refused_before_the_first_step(make_builder: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match=rf"{MODEL}.*layers\.0.*head_size_v=32"):
        make_builder(v_head_dim=32)


def test_values_of_another_head_size_are_refused(make_builder: Any) -> None:
    metadata = make_builder().build(0, common())
    cache = torch.zeros((4, 2, 32, 64 + 32), dtype=torch.float16)
    with pytest.raises(UnsupportedConfigError, match=rf"{MODEL}.*kv_cache.*=96"):
        impl_of().forward(None, None, None, None, cache, metadata, None)


def test_a_layer_that_shares_a_cache_does_not_write(make_builder: Any) -> None:
    cache, _ = run_layer(make_builder(), kv_sharing_target_layer_name="layers.0")
    assert not cache.any()


def test_a_layer_of_breakable_graphs_writes_apart(
    make_builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PodrtImpl, "writes_in_forward", False)
    cache, _ = run_layer(make_builder())
    assert not cache.any()
    key = torch.ones((3, 2, 64)).half()
    impl_of().do_kv_cache_update(None, key, key, cache, torch.tensor([0, -1, 33]))
    assert cache.count_nonzero() == 2 * 2 * 128


def test_the_profiling_run_gives_zeros(make_builder: Any) -> None:
    make_builder()
    out = torch.ones((8, 8, 64))
    impl_of().forward(None, out, None, None, None, None, out)
    assert not out.any()
