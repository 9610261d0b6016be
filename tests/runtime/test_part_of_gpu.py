"""An object whose runs have a part of the SMs, such as those of a green context."""

from __future__ import annotations

import pytest
from fake_gpu import FakeGpu
from runtime_support import LIMITS, layer, plan, tensors

import podrt

#: Decodes enough to fill any GPU, and a prefill.
FULL = ([0, *range(1, 65), 1088], [3000] * 64 + [6000])


@pytest.mark.parametrize("num_sms", [1, 64])
def test_launches_count_on_those_sms(gpu: FakeGpu, num_sms: int) -> None:
    attention = layer(num_sms=num_sms)
    plan(attention, FULL)
    attention.run(**tensors(FULL[0][-1]), stream=7)
    gpu.finish()
    (launch,) = gpu.launches
    assert launch.grid == launch.variant.ctas_per_sm * num_sms


def test_a_graph_counts_on_those_sms(gpu: FakeGpu) -> None:
    attention = layer(num_sms=40)
    attention.reserve(**LIMITS, stream=7)
    captured = attention._session.reservation.captured
    assert all(grid == variant.ctas_per_sm * 40 for variant, grid in captured)


def test_more_than_the_gpu_has_are_refused(gpu: FakeGpu) -> None:
    attention = layer(num_sms=133)
    with pytest.raises(ValueError, match=r"num_sms=133: NVIDIA .* has 1\d\d; pass what the green"):
        plan(attention)


@pytest.mark.parametrize("num_sms", [0, 1.5, True])
def test_what_is_no_number_of_sms_is_refused_at_once(num_sms: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"num_sms="):
        podrt.HybridAttention(8, 2, 64, num_sms=num_sms)
