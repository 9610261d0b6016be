import gc
from array import array as typed_array

import ml_dtypes
import numpy as np
import pytest

from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.view import TensorView, view


@pytest.mark.parametrize(
    "values", [[0, 3, 7], (0, 3, 7), np.array([0, 3, 7], np.int32), typed_array("q", [0, 3, 7])]
)
def test_integers_come_out_as_int32(values):
    array = host_array(values, "qo_indptr")
    assert array.dtype == np.int32
    assert array.tolist() == [0, 3, 7]


def test_range_and_nested_lists():
    assert host_array(range(3), "kv_lens").tolist() == [0, 1, 2]
    assert host_array([[1, 2], [3, 4]], "block_table").shape == (2, 2)


@pytest.mark.parametrize("values", [[], (), np.zeros(0, np.int32)])
def test_empty_is_an_empty_int32_array(values):
    array = host_array(values, "kv_lens")
    assert (array.shape, array.dtype) == ((0,), np.int32)


def test_numpy_array_is_shared_strides_and_all():
    table = np.arange(24, dtype=np.int32).reshape(4, 6)
    shared = host_array(table[::2, 1:4], "block_table")
    assert np.shares_memory(shared, table)
    np.testing.assert_array_equal(shared, table[::2, 1:4])


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.float32, np.float64, np.bool_])
def test_tensors_of_another_dtype_are_refused_with_the_cast(dtype):
    with pytest.raises(TypeError, match=r'kv_lens: got dtype .*kv_lens\.astype\("int32"\)'):
        host_array(np.zeros(3, dtype), "kv_lens")


def test_foreign_byte_order_is_refused():
    with pytest.raises(TypeError, match="byte-swapped int32"):
        host_array(np.zeros(3, ">i4"), "kv_lens")


@pytest.mark.parametrize(
    ("values", "kind"), [([1, 2.5], "float64"), ([True], "bool"), (["1"], "str_"), ([None], "None")]
)
def test_sequences_of_anything_but_ints_are_refused(values, kind):
    with pytest.raises(TypeError, match=f"kv_lens: got elements of type {kind}"):
        host_array(values, "kv_lens")


@pytest.mark.parametrize("values", [5, "12", None, {1: 2}, iter([1])])
def test_what_is_no_sequence_is_refused(values):
    with pytest.raises(TypeError, match=r"kv_lens: got \w+, expected a sequence of ints"):
        host_array(values, "kv_lens")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ([1, 2**31], r"kv_lens\[1\]=2147483648"),
        ([-(2**31) - 1], r"kv_lens\[0\]=-2147483649"),
        ([[1, 2], [2**80, 3]], r"kv_lens\[1, 0\]=1208925819614629174706176"),
    ],
)
def test_numbers_that_do_not_fit_are_named(values, where):
    with pytest.raises(ValueError, match=where + ": does not fit int32"):
        host_array(values, "kv_lens")


def test_limits_themselves_fit():
    assert host_array([-(2**31), 2**31 - 1], "x").tolist() == [-(2**31), 2**31 - 1]


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError, match="block_table: not a regular nest"):
        host_array([[1, 2], [3]], "block_table")


def test_another_integer_type_on_request():
    assert host_array([2**40], "x", dtype="int64").dtype == np.int64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32", "complex128"])
def test_host_view_becomes_the_same_memory(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)[:, ::-1, 1:]
    again = to_numpy(view(array, "q"))
    assert again.dtype == array.dtype
    assert np.shares_memory(again, array)
    np.testing.assert_array_equal(again, array)


def test_writing_reaches_the_callers_array():
    out = np.zeros((2, 2), ml_dtypes.bfloat16)
    to_numpy(view(out, "out"))[:] = 3
    assert (out == 3).all()


def test_read_only_stays_read_only():
    array = np.zeros(3, np.float16)
    array.flags.writeable = False
    assert not to_numpy(view(array, "q")).flags.writeable


def test_array_keeps_the_memory_alive():
    freed = []

    class Owner(np.ndarray):
        def __del__(self):
            if self.base is None:
                freed.append(True)

    array = Owner((4,), np.float32)
    array[:] = 7
    again = to_numpy(view(array, "q"))
    del array
    gc.collect()
    assert not freed
    assert again.tolist() == [7, 7, 7, 7]
    del again
    gc.collect()
    assert freed


def test_empty_tensor_has_no_address_to_read():
    nothing = TensorView("q", 0, (0, 4), (4, 1), "bfloat16", 0, True, "torch", None)
    array = to_numpy(nothing)
    assert (array.shape, array.dtype) == ((0, 4), ml_dtypes.bfloat16)
