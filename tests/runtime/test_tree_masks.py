"""What kernels find of a tree mask: words by address, copied ones, none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, Launch, TorchTensor
from runtime_support import BATCH, capture, launched, layer, plan, replayed, reserved, tensors
from tree_support import random_words

WORDS_AT = 1 << 45


def words_on_gpu(count: int, dtype: str = "torch.int64", **place: Any) -> Any:
    return TorchTensor((count,), WORDS_AT, dtype, **place)


def words_of(gpu: FakeGpu, launch: Launch, count: int) -> list[int]:
    """The words that a launch reads, copied ones."""
    address = int(launch.header["tree_mask"])
    assert address % 8 == 0
    words: list[int] = np.frombuffer(gpu.read(address, 8 * count), np.uint64).tolist()
    return words


@pytest.mark.parametrize("dtype", ["torch.int64", "torch.uint64"])
def test_words_on_the_gpu_are_read_where_they_are(gpu: FakeGpu, dtype: str) -> None:
    attention = layer(tree_mask=True)
    plan(attention, tree_mask=words_on_gpu(50, dtype))
    attention.run(**tensors(41), stream=7)
    (launch,) = launched(gpu)
    assert int(launch.header["tree_mask"]) == WORDS_AT
    assert launch.variant.tree_mask
    plan(attention)
    attention.run(**tensors(41), stream=7)
    assert int(launched(gpu)[0].header["tree_mask"]) == 0


@pytest.mark.parametrize("table_on", ["gpu", "host"])
def test_words_in_host_memory_are_copied_with_the_plan(gpu: FakeGpu, table_on: str) -> None:
    attention = layer(tree_mask=True)
    words = random_words(np.random.default_rng(0), [1, 40])
    given, expected = words.copy(), words.tolist()
    table = (
        {} if table_on == "gpu" else {"block_table": np.arange(64, dtype=np.int32).reshape(2, 32)}
    )
    plan(attention, tree_mask=given, **table)
    given[:] = 0
    attention.run(**tensors(41), stream=7)
    (launch,) = launched(gpu)
    assert words_of(gpu, launch, 41) == expected
    if table_on == "host":
        entries = gpu.read(int(launch.header["page_table"]), 4 * 64)
        assert np.frombuffer(entries, np.int32).tolist() == [*range(64)]


def test_graphs_find_the_words_of_each_plan(gpu: FakeGpu) -> None:
    attention = reserved(tree_mask=True)
    graph = capture(gpu, attention)
    rng = np.random.default_rng(1)
    for _ in range(4):
        words = random_words(rng, [1, 40])
        plan(attention, tree_mask=words)
        assert words_of(gpu, replayed(gpu, graph), 41) == words.tolist()
    plan(attention, tree_mask=words_on_gpu(41))
    assert int(replayed(gpu, graph).header["tree_mask"]) == WORDS_AT
    plan(attention)
    assert int(replayed(gpu, graph).header["tree_mask"]) == 0


def test_the_largest_batch_of_trees_finds_room(gpu: FakeGpu) -> None:
    """64 tokens a request, in as many tiles as they need, with words and pages copied."""
    attention = reserved(tree_mask=True)
    graph = capture(gpu, attention)
    table = np.zeros((12, 188), np.int32)
    lengths = [[0, 64, 128, 192, 256, 320, *[320] * 7], [3000] * 12]
    words = random_words(np.random.default_rng(2), [64] * 5)
    attention.plan(*lengths, block_table=table, tree_mask=words, stream=7)
    launch = replayed(gpu, graph)
    assert {*launch.decode["request"].tolist()} == {0, 1, 2, 3, 4}
    assert words_of(gpu, launch, 320) == words.tolist()


def test_requests_of_as_many_tokens_as_a_word_has_bits_are_decodes(gpu: FakeGpu) -> None:
    attention = reserved(tree_mask=True)
    assert attention.are_decodes(64)
    assert not attention.are_decodes(65)
    assert not reserved().are_decodes(64)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (words_on_gpu(40), ValueError, "tree_mask: has 40 words, expected at least 41"),
        (words_on_gpu(41, "torch.int32"), TypeError, "tree_mask: got dtype int32, expected uint64"),
        (np.zeros((41, 1), np.uint64), ValueError, r"tree_mask: got shape \(41, 1\)"),
        (np.zeros(82, np.uint64)[::2], ValueError, "tree_mask: got strides"),
        ([-1] * 41, ValueError, "tree_mask.*does not fit uint64"),
        ([0.5] * 41, TypeError, "tree_mask: got elements of type float"),
    ],
)
def test_bad_words_are_refused_and_leave_the_plan_before(
    gpu: FakeGpu, words: Any, error: type[Exception], message: str
) -> None:
    attention = layer(tree_mask=True)
    plan(attention)
    before = attention.current_plan
    with pytest.raises(error, match=message):
        plan(attention, tree_mask=words)
    assert attention.current_plan is before


def test_a_tree_of_too_many_tokens_is_refused(gpu: FakeGpu) -> None:
    attention, batch = layer(tree_mask=True), ([0, 1, 66], [500, 90])
    words = np.zeros(66, np.uint64)
    plan(attention, batch, tree_mask=words)
    words[65] = 1
    with pytest.raises(ValueError, match=r"request 1 has 65 query tokens .* at most 64 tokens"):
        plan(attention, batch, tree_mask=words)


def test_a_layer_without_trees_takes_no_words(gpu: FakeGpu) -> None:
    with pytest.raises(ValueError, match="pass tree_mask=True where the layer is made"):
        plan(layer(), BATCH, tree_mask=words_on_gpu(41))
