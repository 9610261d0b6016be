"""The front door: `hybrid_attention` on the reference backend, `HybridAttention` without a GPU."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from attention_support import KV_LENS, QO_INDPTR, Batch
from fake_gpu import FakeGpu, install

import podrt
from podrt.errors import DeviceError, UnsupportedConfigError
from podrt.gpu import device as device_module
from podrt.runtime import planned as planned_module
from podrt.tensors import page_table as page_table_module
from podrt.tensors import run_tensors as run_tensors_module

STEP = {"float16": 2**-11, "bfloat16": 2**-8}
GOOD = Batch()


def require_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding to the output's type."""
    step = STEP[got.dtype.name]
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=step, atol=1e-6)


@pytest.fixture(params=["float16", "bfloat16"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


def call(batch: Batch, **options: Any) -> Any:
    return podrt.hybrid_attention(
        batch.q, batch.k, batch.v, QO_INDPTR, batch.kv_lens, backend="reference", **options
    )


def call_paged(batch: Batch, **options: Any) -> Any:
    return podrt.hybrid_attention(
        batch.q, batch.k_pages, batch.v_pages, QO_INDPTR, batch.kv_lens, **options
    )


@pytest.mark.parametrize("causal", [True, False])
def test_contiguous_cache(batch: Batch, causal: bool) -> None:
    out, lse = call(batch, causal=causal, return_lse=True)
    expected_out, expected_lse = batch.expected(causal=causal)
    assert isinstance(out, np.ndarray)
    assert (out.dtype, lse.dtype) == (batch.q.dtype, np.float32)
    require_close(out, expected_out)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def test_rows_without_keys_are_zero_with_lse_of_minus_infinity(batch: Batch) -> None:
    out, lse = call(batch, return_lse=True)
    assert (out[-2:] == 0).all()
    assert np.isneginf(lse[-2:]).all()
    assert np.isfinite(lse[:-2]).all()


def test_block_table(batch: Batch) -> None:
    require_close(call_paged(batch, block_table=batch.block_table), batch.expected()[0])


def test_list_of_pages(batch: Batch) -> None:
    require_close(call_paged(batch, **batch.ragged_pages), batch.expected()[0])


@pytest.mark.parametrize("paged", [True, False])
def test_hnd_layout(batch: Batch, paged: bool) -> None:
    k, v = (batch.k_pages, batch.v_pages) if paged else (batch.k, batch.v)
    k, v = (np.ascontiguousarray(cache.transpose(0, 2, 1, 3)) for cache in (k, v))
    table = batch.block_table if paged else None
    out = podrt.hybrid_attention(
        batch.q, k, v, QO_INDPTR, batch.kv_lens, kv_layout="HND", block_table=table
    )
    require_close(out, batch.expected()[0])


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (71, 1)])
def test_any_group(heads: tuple[int, int]) -> None:
    batch = Batch(heads=heads)
    require_close(call(batch), batch.expected()[0])


def test_scale(batch: Batch) -> None:
    require_close(call(batch, sm_scale=0.5), batch.expected(sm_scale=0.5)[0])


@pytest.mark.parametrize("paged", [True, False])
def test_window_cap_and_sinks(batch: Batch, paged: bool) -> None:
    options: dict[str, Any] = {"window_left": 17, "logits_soft_cap": 1.5}
    sinks = np.linspace(-2, 4, 16, dtype=np.float32)[::2]
    options["sinks"] = sinks
    run = call_paged if paged else call
    table = {"block_table": batch.block_table} if paged else {}
    out, lse = run(batch, **table, **options, return_lse=True)
    expected, expected_lse = batch.expected(**options)
    require_close(out, expected)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    assert not np.allclose(expected, batch.expected()[0], atol=0.05)


def test_lengths_may_be_plain_lists() -> None:
    batch = Batch()
    out = podrt.hybrid_attention(batch.q, batch.k, batch.v, QO_INDPTR.tolist(), KV_LENS)
    require_close(out, batch.expected()[0])


def test_outputs_are_written_in_place(batch: Batch) -> None:
    out = np.full((*batch.q.shape[:2], 128), 7, batch.q.dtype)[:, :, :64]
    lse = np.full(batch.q.shape[1::-1], 7, np.float32).T
    returned = call(batch, out=out, lse=lse, return_lse=True)
    assert returned[0] is out
    assert returned[1] is lse
    expected_out, expected_lse = batch.expected()
    require_close(out, expected_out)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    assert (out.base[:, :, 64:] == 7).all()


def test_lse_is_filled_without_being_returned(batch: Batch) -> None:
    lse = np.full(batch.q.shape[:2], 7, np.float32)
    assert isinstance(call(batch, lse=lse), np.ndarray)
    np.testing.assert_allclose(lse, batch.expected()[1], rtol=1e-6)


def test_strided_inputs_are_read_where_they_lie(batch: Batch) -> None:
    tokens, heads, head_dim = batch.q.shape
    wide = np.zeros((heads, tokens, 2 * head_dim), batch.q.dtype)
    strided = wide.transpose(1, 0, 2)[:, :, :head_dim]
    strided[:] = batch.q
    batch.q = strided
    require_close(call(batch), batch.expected()[0])


def test_batch_without_tokens() -> None:
    batch = Batch()
    nothing = np.zeros(6, np.int32)
    out, lse = podrt.hybrid_attention(
        batch.q[:0], batch.k, batch.v, nothing, batch.kv_lens, return_lse=True
    )
    assert (out.shape, lse.shape) == ((0, 8, 64), (0, 8))


def test_auto_backend_computes_host_tensors_on_the_host() -> None:
    batch = Batch()
    out = podrt.hybrid_attention(batch.q, batch.k, batch.v, QO_INDPTR, batch.kv_lens)
    np.testing.assert_array_equal(out, call(batch))


def test_run_before_plan() -> None:
    attention = podrt.HybridAttention(8, 2, 64)
    with pytest.raises(RuntimeError, match=r"no batch is planned: call plan\(\) first"):
        attention.run(GOOD.q, GOOD.k, GOOD.v)
    with pytest.raises(RuntimeError, match="no batch is planned"):
        _ = attention.variants
    with pytest.raises(RuntimeError, match="no batch is planned"):
        _ = attention.current_plan


class NoDriverError(RuntimeError):
    """As CuPy's, of a machine without a driver."""


def no_driver(*_: object) -> Any:
    raise NoDriverError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize("device", [None, 0])
def test_without_a_gpu_plan_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, device: int | None
) -> None:
    runtime = SimpleNamespace(
        CUDARuntimeError=NoDriverError, getDevice=no_driver, getDeviceProperties=no_driver
    )
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(device_module, "load_cupy", lambda: cupy)
    device_module.device_info.cache_clear()
    attention = podrt.HybridAttention(8, 2, 64, device=device)
    with pytest.raises(DeviceError, match="install an NVIDIA driver"):
        attention.plan([0, 1], [5])
    with pytest.raises(RuntimeError, match="no batch is planned"):
        attention.run(GOOD.q, GOOD.k, GOOD.v)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A GPU to plan for, and to see launches of."""
    return install(monkeypatch)


def test_plan_loads_what_run_will_launch(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, dtype="float16")
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    assert [config.form for config in attention.variants] == ["pod"]
    assert tuple(hopper.functions) == attention.variants
    assert [config.family for config in attention.variants] == ["hopper"]
    assert attention.current_plan.num_kv_heads == 2
    # Requests of 1, 7 and 2 tokens share a decode tile; the one of 20 does not.
    assert set(attention.current_plan.decode["request"].tolist()) == {0, 3, 4}


def test_explain_is_of_the_planned_batch_and_changes_nothing(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, dtype="float16")
    with pytest.raises(RuntimeError, match="call plan"):
        attention.explain()
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    plan, variants, loaded = attention.current_plan, attention.variants, list(hopper.functions)
    found = attention.explain()
    assert found.gpu == "NVIDIA H100"
    assert found.choice is not None
    assert found.choice.launches == len(variants)
    assert "chosen by rule" in str(found)
    assert attention.current_plan is plan
    assert hopper.functions == loaded  # candidates are not compiled


def test_explain_has_the_tiles_that_were_reserved(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, dtype="float16")
    attention.reserve(8, 64, 64)
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    units = attention.current_plan.num_prefill_units
    assert attention.explain().batch.startswith(f"{units} units of prefill")


def test_planning_again_replaces_the_plan(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, page_size=16, policy="serial", causal=False)
    attention.plan(QO_INDPTR, GOOD.kv_lens, block_table=GOOD.block_table)
    assert [config.form for config in attention.variants] == ["prefill", "decode"]
    attention.plan([0, 1], [5], **{"kv_indptr": [0, 1], "kv_indices": [3]})
    assert [config.form for config in attention.variants] == ["decode"]
    assert attention.variants[0].page_size == 16
    assert attention.variants[0].causal is False
    attention.plan([0], [], block_table=np.empty((0, 4), np.int32))
    assert attention.variants == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kv_lens": [5, -1]}, ValueError, "kv_lens[1] is -1"),
        ({"kv_lens": np.array([5, 5])}, TypeError, "kv_lens: got dtype int64"),
        ({"qo_indptr": [0, 2, 1]}, ValueError, "qo_indptr falls from 2"),
        ({"kv_lens": [5, 99]}, ValueError, "kv_lens[1] is 99; block_table gives request 1 1 pages"),
        ({"block_table": None}, ValueError, "page_size=16: pass block_table"),
    ],
)
def test_plan_checks_its_arguments_and_keeps_the_old_plan(
    hopper: FakeGpu, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "qo_indptr": [0, 1, 2],
        "kv_lens": [5, 5],
        "block_table": [[0], [1]],
    }
    attention = podrt.HybridAttention(8, 2, 64, page_size=16)
    attention.plan(**arguments)
    before = attention.current_plan
    with pytest.raises(error, match=re.escape(message)):
        attention.plan(**(arguments | changes))
    assert attention.current_plan is before


def on_gpu(monkeypatch: pytest.MonkeyPatch, module: Any, names: set[str], device: int = 0) -> None:
    """Let tensors called so look as if they lay on a GPU."""
    real = module.view
    monkeypatch.setattr(
        module,
        "view",
        lambda tensor, name, stream=0: (
            dataclasses.replace(real(tensor, name, stream), device=device, pointer=1024)
            if name in names
            else real(tensor, name, stream)
        ),
    )


def test_page_table_on_another_gpu_is_refused(
    hopper: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, page_table_module, {"block_table"}, device=1)
    monkeypatch.setattr(page_table_module, "to_numpy", no_driver)
    attention = podrt.HybridAttention(8, 2, 64, page_size=16)
    with pytest.raises(ValueError, match="block_table: lies on cuda:1, expected cuda:0"):
        attention.plan(QO_INDPTR, GOOD.kv_lens, block_table=GOOD.block_table)
    assert hopper.functions == []


def test_run_checks_host_page_numbers_once_for_each_cache_size(
    hopper: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, run_tensors_module, {"q", "k_cache", "v_cache", "out"})
    checks: list[int] = []
    real = planned_module.require_pages_exist

    def counted(table: Any, batch: Any, num_pages: int, *others: Any) -> None:
        checks.append(num_pages)
        real(table, batch, num_pages, *others)

    monkeypatch.setattr(planned_module, "require_pages_exist", counted)

    def num_launches() -> int:
        hopper.finish()
        return len(hopper.launches)

    attention = podrt.HybridAttention(8, 2, 64, page_size=16, dtype="float16")
    attention.plan(QO_INDPTR, GOOD.kv_lens, block_table=GOOD.block_table)

    def run(num_pages: int) -> None:
        k, v = GOOD.k_pages[:num_pages], GOOD.v_pages[:num_pages]
        attention.run(GOOD.q, k, v, out=np.empty_like(GOOD.q), stream=0)

    all_pages = len(GOOD.k_pages)
    run(all_pages)
    run(all_pages)
    assert (num_launches(), checks) == (2, [all_pages])
    needed = int(GOOD.ragged_pages["kv_indices"].max())
    with pytest.raises(ValueError, match=f"block_table: page .* less than {needed}, the pages of"):
        run(needed)
    assert (num_launches(), checks) == (2, [all_pages, needed])
    attention.plan(QO_INDPTR, GOOD.kv_lens, block_table=GOOD.block_table)
    run(all_pages)
    assert checks == [all_pages, needed, all_pages]


def test_run_refuses_host_tensors(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, dtype="float16")
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    with pytest.raises(ValueError, match="q: lies in host memory, expected a tensor on a CUDA GPU"):
        attention.run(GOOD.q, GOOD.k, GOOD.v)


def test_run_checks_tensors_against_the_plan(hopper: FakeGpu) -> None:
    attention = podrt.HybridAttention(8, 2, 64, dtype="float16")
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    with pytest.raises(ValueError, match=re.escape("q: got shape (29, 8, 64), expected (30, 8,")):
        attention.run(GOOD.q[1:], GOOD.k, GOOD.v)
    with pytest.raises(TypeError, match="stream: got str"):
        attention.run(GOOD.q, GOOD.k, GOOD.v, stream="main")


def test_policy_may_be_an_object(hopper: FakeGpu) -> None:
    policy = podrt.Policy(family="hopper", decode_rows=8, prefill_only_sms=3)
    attention = podrt.HybridAttention(8, 2, 64, policy=policy)
    assert attention.policy == policy
    attention.plan(QO_INDPTR, GOOD.kv_lens)
    assert [config.form for config in attention.variants] == ["pod"]
    plan = attention.current_plan
    assert (plan.decode_rows, plan.decode_only_ctas, plan.prefill_only_ctas) == (8, 0, 3)
    # Two tokens of four query heads fill a decode tile.
    assert set(plan.decode["request"].tolist()) == {0, 4}


def test_policy_objects_and_names_are_one(batch: Batch) -> None:
    for policy in ("serial", podrt.Policy(serial=True), podrt.Policy(family="portable")):
        require_close(call(batch, policy=policy), batch.expected()[0])
    named, fixed = (
        podrt.HybridAttention(8, 2, 64, policy=policy)
        for policy in ("50:50", podrt.Policy(family="portable", ratio=(1, 1)))
    )
    assert named.policy == fixed.policy


def test_reserve_takes_the_decode_rows_that_are_fixed_or_refuses(hopper: FakeGpu) -> None:
    """Four query heads share a KV head."""
    policy = podrt.Policy(family="hopper", decode_rows=16)
    attention = podrt.HybridAttention(8, 2, 64, page_size=16, policy=policy)
    limits = {"max_requests": 4, "max_tokens": 64, "max_kv_len": 256}
    for refuses in (attention.reserve, attention.workspace_bytes):
        with pytest.raises(UnsupportedConfigError, match=r"max_decode_tokens=5: .* at most 4;"):
            refuses(**limits, max_decode_tokens=5)
    with pytest.raises(RuntimeError, match="call reserve"):
        attention.are_decodes(1)
    attention.reserve(**limits)
    assert [attention.are_decodes(tokens) for tokens in (1, 4, 5)] == [True, True, False]


def test_public_names() -> None:
    assert set(podrt.__all__) <= set(dir(podrt))
    assert all(getattr(podrt, name) is not None for name in podrt.__all__)
    with pytest.raises(AttributeError, match="module 'podrt' has no attribute 'attend'"):
        _ = podrt.attend
