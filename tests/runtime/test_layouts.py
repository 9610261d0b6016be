"""Tensors that only one family can read, and strides that do not matter."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import H100, FakeGpu, TorchTensor, install
from runtime_support import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    NUM_PAGES,
    PAGE_SIZE,
    STREAM,
    capture,
    is_of,
    launched,
    layer,
    plan,
    replayed,
    reserved,
    tensors,
)

from podrt.policy.schedule import Scheduler
from podrt.runtime import session

CACHE = (NUM_PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM)
TOKEN = KV_HEADS * HEAD_DIM
ONLY_PORTABLE: dict[str, dict[str, Any]] = {
    "heads backwards": {
        "q": TorchTensor((41, HEADS, HEAD_DIM), 1 << 40, strides=(1024, -HEAD_DIM, 1))
    },
    "one row for all tokens": {
        "q": TorchTensor((41, HEADS, HEAD_DIM), 1 << 40, strides=(0, HEAD_DIM, 1))
    },
    "pages backwards": {
        "k_cache": TorchTensor(CACHE, 1 << 41, strides=(-16 * TOKEN, TOKEN, HEAD_DIM, 1))
    },
    "KV heads no multiple of 64 apart": {
        "v_cache": TorchTensor(CACHE, 1 << 42, strides=(16 * 272, 272, 136, 1))
    },
}


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, H100)


@pytest.mark.parametrize("case", ONLY_PORTABLE)
def test_auto_serves_what_only_the_portable_family_reads(hopper: FakeGpu, case: str) -> None:
    attention = layer()
    plan(attention)
    assert attention.variants[0].family == "hopper"
    for _ in range(2):
        attention.run(**tensors(41, **ONLY_PORTABLE[case]), stream=STREAM)
        (launch,) = launched(hopper)
        assert launch.variant.family == "portable"
        assert is_of(launch, attention.current_plan)
    assert attention.variants == (launch.variant,)
    plan(attention, ([0, 1], [50]))
    assert attention.variants[0].family == "portable"


@pytest.mark.parametrize("case", ONLY_PORTABLE)
def test_the_hopper_family_comes_back_with_tensors_that_it_reads(
    hopper: FakeGpu, case: str
) -> None:
    attention = layer()
    odd = tensors(41, **ONLY_PORTABLE[case])
    plan(attention)
    attention.run(**odd, stream=STREAM)
    attention.run(**tensors(41), stream=STREAM)
    assert attention.variants[0].family == "hopper"
    plan(attention)
    assert attention.variants[0].family == "hopper"
    for _ in range(2):
        attention.run(**tensors(41), stream=STREAM)
    attention.run(**odd, stream=STREAM)
    families = [launch.variant.family for launch in launched(hopper)]
    assert families == ["portable", "hopper", "hopper", "hopper", "portable"]


def test_layers_of_both_kinds_in_turn_plan_a_batch_once_for_each_family(
    hopper: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    schedule = Scheduler.schedule

    def counted(self: Scheduler, *arguments: Any, **options: Any) -> Any:
        made.append(self.policy.family)
        return schedule(self, *arguments, **options)

    monkeypatch.setattr(Scheduler, "schedule", counted)
    attention = layer()
    odd = tensors(41, **ONLY_PORTABLE["pages backwards"])
    for kv_len in (500, 501):
        plan(attention, ([0, 1, 41], [kv_len, 90]))
        for given in (tensors(41), odd, odd, tensors(41), odd):
            attention.run(**given, stream=STREAM)
            (launch,) = launched(hopper)
            assert launch.variant.family == ("portable" if given is odd else "hopper")
            assert is_of(launch, attention.current_plan)
    assert made == ["auto", "portable", "portable", "auto"]


def test_an_empty_batch_between_others(hopper: FakeGpu) -> None:
    """It has no launch that could tell which family reads what."""
    attention = layer()
    odd = ONLY_PORTABLE["pages backwards"]
    plan(attention)
    attention.run(**tensors(41, **odd), stream=STREAM)
    plan(attention, ([0, 0], [50]))
    attention.run(**tensors(0), stream=STREAM)
    plan(attention)
    attention.run(**tensors(41, **odd), stream=STREAM)
    assert launched(hopper)[-1].variant.family == "portable"


def test_a_fallback_that_does_not_compile_leaves_the_plan(
    hopper: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = layer()
    plan(attention)

    def fail(variant: Any, device: int) -> Any:
        if variant.family == "portable":
            raise MemoryError("no room to compile in")
        return load(variant, device)

    load = session.load_kernel
    monkeypatch.setattr(session, "load_kernel", fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            attention.run(**tensors(41, **ONLY_PORTABLE["pages backwards"]), stream=STREAM)
    attention.run(**tensors(41), stream=STREAM)
    (launch,) = launched(hopper)
    assert launch.variant.family == "hopper"
    assert is_of(launch, attention.current_plan)


@pytest.mark.parametrize("case", ONLY_PORTABLE)
@pytest.mark.parametrize("make", [lambda: layer(policy="hopper"), reserved])
def test_hopper_alone_and_reserved_objects_refuse_it(hopper: FakeGpu, case: str, make: Any) -> None:
    attention = make()
    plan(attention)
    (name,) = ONLY_PORTABLE[case]
    with pytest.raises(ValueError, match=rf'{name}: got strides .* or use policy="portable"'):
        attention.run(**tensors(41, **ONLY_PORTABLE[case]), stream=STREAM)
    attention.run(**tensors(41), stream=STREAM)
    assert [launch.variant.family for launch in launched(hopper)] == ["hopper"]


def test_a_capture_may_be_the_first_to_find_out(hopper: FakeGpu) -> None:
    attention = layer()
    plan(attention)
    hopper.capturing[STREAM] = 1
    attention.run(**tensors(41, **ONLY_PORTABLE["pages backwards"]), stream=STREAM)
    del hopper.capturing[STREAM]
    launch = replayed(hopper, 1)
    assert launch.variant.family == "portable"
    assert is_of(launch, attention.current_plan)


@pytest.mark.parametrize("far", [2**31, 2**40, -(2**33), 3])
def test_strides_of_axes_of_length_1_do_not_matter(gpu: FakeGpu, far: int) -> None:
    """A contiguous cache of one long request has a stride of its only row beyond 2**31."""
    attention = layer(page_size=None)
    shape = (1, 1 << 20, KV_HEADS, HEAD_DIM)
    cache = TorchTensor(shape, 1 << 41, strides=(far, TOKEN, HEAD_DIM, 1))
    q = TorchTensor((1, HEADS, HEAD_DIM), 1 << 40, strides=(far, HEAD_DIM, 1))
    attention.plan([0, 1], [1 << 20], stream=STREAM)
    family = attention.variants[0].family
    attention.run(**tensors(1, q=q, k_cache=cache, v_cache=cache), stream=STREAM)
    (launch,) = launched(gpu)
    assert launch.variant.family == family
    assert is_of(launch, attention.current_plan)


def test_an_empty_q_is_captured_like_any_other(gpu: FakeGpu) -> None:
    attention = reserved()
    launch = replayed(gpu, capture(gpu, attention, 0))
    assert len(launch.decode) == 0
