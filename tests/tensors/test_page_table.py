"""Page tables as callers pass them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from fake_gpu import TorchTensor

from podrt.spec.mask import Mask
from podrt.tensors.page_table import (
    PageTable,
    make_batch,
    page_table_of,
    read_page_table,
    require_on_device,
    require_pages_exist,
)


def i32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


BLOCK_TABLE = i32([[3, 1, 4], [1, 5, 9]])
QO_INDPTR = i32([0, 1, 3])
KV_LENS = i32([33, 48])


def block_table(values: Any = BLOCK_TABLE) -> PageTable:
    table = read_page_table(16, values, None, None)
    assert table is not None
    return table


def on_gpu(table: PageTable, **fields: Any) -> PageTable:
    """The table as it looks when its values lie on a GPU."""
    tensor = dataclasses.replace(table.tensor, device=0, **fields)
    return dataclasses.replace(table, tensor=tensor, host_values=None)


def test_a_table_on_the_gpu_is_known_again_unless_it_has_changed() -> None:
    tensor = TorchTensor((8, 100), 1 << 30, "torch.int32")
    table = block_table(tensor)
    assert table.is_at(tensor)
    assert table.is_at(TorchTensor((8, 100), 1 << 30, "torch.int32"))
    assert not table.is_at(TorchTensor((8, 100), 1 << 31, "torch.int32"))
    assert not table.is_at(TorchTensor((7, 100), 1 << 30, "torch.int32"))
    tensor.shape, tensor.strides = (8, 50), (50, 1)  # resized in place
    assert not table.is_at(tensor)


def test_contiguous_cache_has_none() -> None:
    assert read_page_table(None, None, None, None) is None
    batch = make_batch(QO_INDPTR, KV_LENS, None, None)
    assert batch.page_size is None


@pytest.mark.parametrize("values", [BLOCK_TABLE, BLOCK_TABLE.tolist()])
def test_block_table_is_flat_for_the_kernel(values: Any) -> None:
    table = block_table(values)
    assert table.flat().tolist() == [3, 1, 4, 1, 5, 9]
    assert table.flat().dtype == np.int32
    assert table.row_stride == 3
    batch = make_batch(QO_INDPTR, KV_LENS, table, 16)
    assert (batch.page_begin.tolist(), batch.page_size) == ([0, 3], 16)


def test_rows_of_a_wider_table_are_packed_on_the_host() -> None:
    wide = np.full((2, 8), -1, np.int32)
    wide[:, :3] = BLOCK_TABLE
    table = block_table(wide[:, :3])
    assert table.flat().tolist() == BLOCK_TABLE.ravel().tolist()
    assert make_batch(QO_INDPTR, KV_LENS, table, 16).page_begin.tolist() == [0, 3]


def test_rows_of_a_wider_table_stay_where_they_are_on_a_gpu() -> None:
    table = on_gpu(block_table(), strides=(8, 1))
    assert table.row_stride == 8
    assert make_batch(QO_INDPTR, KV_LENS, table, 16).page_begin.tolist() == [0, 8]


def test_stride_of_a_single_row_does_not_matter() -> None:
    table = on_gpu(block_table([[1, 2, 3]]), strides=(-7, 1))
    assert make_batch(i32([0, 1]), i32([5]), table, 16).page_begin.tolist() == [0]


def test_host_table_is_copied() -> None:
    values = BLOCK_TABLE.copy()
    table = block_table(values)
    values[:] = 0
    assert table.flat().tolist() == [3, 1, 4, 1, 5, 9]


def test_table_on_a_gpu_has_no_host_values() -> None:
    with pytest.raises(ValueError, match="block_table: lies on cuda:0, expected host memory"):
        on_gpu(block_table()).flat()


def test_list_of_pages_with_offsets() -> None:
    table = read_page_table(16, None, [0, 3, 6], [3, 1, 4, 1, 5, 9, 2, 6])
    assert table is not None
    assert table.flat().tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    batch = make_batch(QO_INDPTR, KV_LENS, table, 16)
    assert batch.page_begin.tolist() == [0, 3]


def test_empty_tables() -> None:
    nobody = make_batch(i32([0]), i32([]), block_table(np.empty((0, 4), np.int32)), 16)
    assert nobody.num_requests == 0
    no_keys = make_batch(i32([0, 1]), i32([0]), block_table(np.empty((1, 0), np.int32)), 16)
    assert no_keys.kv_lens.tolist() == [0]


@pytest.mark.parametrize(
    ("page_size", "given", "message"),
    [
        (None, {"block_table": BLOCK_TABLE}, "block_table: given for a contiguous cache"),
        (None, {"kv_indices": [1]}, "kv_indices: given for a contiguous cache"),
        (16, {}, "page_size=16: pass block_table, or kv_indptr with kv_indices; got none of them"),
        (16, {"kv_indptr": [0, 1]}, "got kv_indptr"),
        (16, {"kv_indices": [1]}, "got kv_indices"),
        (
            16,
            {"block_table": BLOCK_TABLE, "kv_indptr": [0, 1], "kv_indices": [1]},
            "got block_table, kv_indptr, kv_indices",
        ),
        (16, {"block_table": [1, 2]}, "block_table: got shape (2,), expected 2 dimensions"),
        (16, {"kv_indptr": [0, 1], "kv_indices": [[1]]}, "kv_indices: got shape (1, 1)"),
        (16, {"block_table": [[1], [1, 2]]}, "block_table: not a regular nest"),
        (16, {"block_table": [[2**31]]}, "block_table[0, 0]=2147483648: does not fit int32"),
        (16, {"block_table": BLOCK_TABLE[:, ::2]}, "block_table: got strides (3, 2)"),
    ],
)
def test_refusal_names_the_argument(
    page_size: int | None, given: dict[str, Any], message: str
) -> None:
    names = ("block_table", "kv_indptr", "kv_indices")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_page_table(page_size, *(given.get(name) for name in names))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"block_table": BLOCK_TABLE.astype(np.int64)}, "block_table: got dtype int64, expected"),
        ({"block_table": BLOCK_TABLE.astype(np.float32)}, "block_table: got dtype float32"),
        ({"block_table": [[0.5]]}, "block_table: got elements of type float"),
        ({"kv_indptr": np.array([0, 1]), "kv_indices": [1]}, "kv_indptr: got dtype int64"),
        ({"kv_indptr": [0, 1], "kv_indices": np.array([1])}, "kv_indices: got dtype int64"),
        ({"block_table": 7}, "block_table: got int"),
    ],
)
def test_wrong_type_names_the_argument(given: dict[str, Any], message: str) -> None:
    names = ("block_table", "kv_indptr", "kv_indices")
    with pytest.raises(TypeError, match=re.escape(message)):
        read_page_table(16, *(given.get(name) for name in names))


def test_table_of_another_gpu_is_refused() -> None:
    table = on_gpu(block_table())
    require_on_device(table, 0)
    with pytest.raises(
        ValueError, match="block_table: lies on cuda:0, expected cuda:1, the device"
    ):
        require_on_device(table, 1)


def test_host_table_serves_any_gpu() -> None:
    require_on_device(block_table(), 3)
    require_on_device(None, 3)


def listed(indices: list[int]) -> PageTable:
    table = read_page_table(16, None, [0, 3, 6], indices)
    assert table is not None
    return table


@pytest.mark.parametrize("table", [block_table(), listed([3, 1, 4, 1, 5, 9])], ids=["rows", "list"])
def test_pages_of_the_cache_are_accepted(table: PageTable) -> None:
    require_pages_exist(table, make_batch(QO_INDPTR, KV_LENS, table, 16), 10)


@pytest.mark.parametrize(
    ("table", "num_pages", "message"),
    [
        (
            block_table(),
            9,
            "block_table: page 2 of request 1 is 9, expected at least 0 and less than 9",
        ),
        (
            block_table([[0, 1, -1], [2, 3, 4]]),
            9,
            "block_table: page 2 of request 0 is -1, expected",
        ),
        (listed([0, 1, 2, 3, 77, 4]), 9, "kv_indices: page 1 of request 1 is 77, expected"),
        (listed([0] * 6), 0, "kv_indices: page 0 of request 0 is 0, expected"),
    ],
    ids=["too large", "negative", "list", "no pages"],
)
def test_pages_outside_of_the_cache_are_refused(
    table: PageTable, num_pages: int, message: str
) -> None:
    batch = make_batch(QO_INDPTR, KV_LENS, table, 16)
    with pytest.raises(ValueError, match=re.escape(message)):
        require_pages_exist(table, batch, num_pages)


def test_entries_that_nobody_reads_may_hold_anything() -> None:
    table = block_table([[0, 1, -1], [2, 99, 99], [-7, -7, -7]])
    # 32 keys fill two pages, 1 key is in the first, and the last request has no queries.
    batch = make_batch(i32([0, 1, 3, 3]), i32([32, 1, 48]), table, 16)
    require_pages_exist(table, batch, 3)


def test_pages_before_all_windows_may_hold_anything() -> None:
    # Two tokens of 48 keys and one of 40, which see 15 before their own: from keys 31 and 24 on.
    table = block_table([[99, 1, 2], [-7, 0, 2], [0, 1, 2]])
    batch = make_batch(i32([0, 2, 3, 4]), i32([48, 40, 1]), table, 16)
    require_pages_exist(table, batch, 3, Mask(window_left=15))
    with pytest.raises(ValueError, match="page 0 of request 0 is 99, expected"):
        require_pages_exist(table, batch, 3, Mask(window_left=31))
    with pytest.raises(ValueError, match="page 0 of request 0 is 99, expected"):
        require_pages_exist(table, batch, 3)


def test_values_on_a_gpu_are_not_looked_at() -> None:
    table = on_gpu(block_table())
    require_pages_exist(table, make_batch(QO_INDPTR, KV_LENS, table, 16), 1)


def test_a_window_may_be_longer_than_int32() -> None:
    table = block_table([[0, 1], [-1, 0]])
    batch = make_batch(i32([0, 1, 2]), i32([32, 0]), table, 16)
    require_pages_exist(table, batch, 2, Mask(window_left=2**40))


def test_lists_that_are_right_make_the_table_that_is_read_of_them() -> None:
    indptr, indices = i32([0, 3, 5]), i32([3, 1, 4, 1, 5])
    made, read = page_table_of(indptr, indices), read_page_table(16, None, indptr, indices)
    assert read is not None
    assert made.tensor == read.tensor
    assert made.kv_indptr is read.kv_indptr is indptr
    assert made.flat().tolist() == read.flat().tolist()
