import ctypes
import gc
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

from podrt.errors import DeviceError
from podrt.tensors.view import numpy_dtype, view

BF16 = np.dtype(ml_dtypes.bfloat16)


class Exporter:
    """A foreign library's tensor: DLPack and nothing else."""

    def __init__(self, array):
        self.array, self.streams = array, []

    def __dlpack__(self, *, stream=None, **options):
        self.streams.append(stream)
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


def with_byte_offset(capsule, offset_bytes):
    """Return an unversioned DLPack capsule, its tensor moved on by an offset."""
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype, address_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    DLTensor.from_address(address_of(capsule, b"dltensor")).byte_offset = offset_bytes
    return capsule


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.int64, BF16])
def test_numpy_array_is_described_where_it_lies(dtype):
    array = np.zeros((3, 4, 8), dtype)
    seen = view(array, "q")
    assert (seen.name, seen.pointer, seen.owner) == ("q", array.ctypes.data, array)
    assert (seen.shape, seen.strides) == ((3, 4, 8), (32, 8, 1))
    assert seen.dtype == np.dtype(dtype).name
    assert seen.itemsize == array.itemsize
    assert (seen.device, seen.place, seen.writable) == (None, "host memory", True)
    assert seen.framework == "numpy"


@pytest.mark.parametrize(
    ("cut", "strides", "offset"),
    [
        (lambda a: a[1:, ::2, 4:], (32, 16, 1), 36),
        (lambda a: a.transpose(1, 0, 2), (8, 32, 1), 0),
        (lambda a: a[::-1], (-32, 8, 1), 64),
        (lambda a: np.broadcast_to(a[:1], (5, 4, 8)), (0, 8, 1), 0),
        (lambda a: a[0, 0, 0], (), 0),
    ],
    ids=["slice", "transpose", "reversed", "broadcast", "scalar"],
)
def test_strides_are_kept(cut, strides, offset):
    array = np.zeros((3, 4, 8), np.float16)
    seen = view(np.asarray(cut(array)), "k_cache")
    assert seen.strides == strides
    if seen.shape:
        assert seen.pointer == array.ctypes.data + 2 * offset


def test_printing_a_view_does_not_print_the_tensor():
    class Unprintable(np.ndarray):
        def __repr__(self):
            raise AssertionError

    assert "dtype='float64'" in repr(view(np.zeros(2).view(Unprintable), "q"))


def test_read_only_array_is_seen_as_such():
    array = np.zeros(4, np.float16)
    array.flags.writeable = False
    assert not view(array, "q").writable


def test_strides_between_elements_are_refused():
    packed = np.zeros(4, np.dtype([("tag", np.int8), ("value", np.float32)]))
    with pytest.raises(ValueError, match=r"q: strides of \(5,\) bytes"):
        view(packed["value"], "q")


def test_foreign_byte_order_is_no_plain_dtype():
    assert view(np.zeros(2, ">f4"), "q").dtype == "byte-swapped float32"


@pytest.mark.parametrize("tensor", [None, [1.0, 2.0], 3, "q"])
def test_what_is_no_tensor_is_refused(tensor):
    with pytest.raises(TypeError, match=f"v_cache: got {type(tensor).__name__}, expected"):
        view(tensor, "v_cache")


def test_numpy_dtype_knows_ml_dtypes_too():
    assert numpy_dtype("float16") == np.float16
    assert numpy_dtype("bfloat16") == BF16


def test_importing_and_viewing_numpy_loads_no_framework():
    code = (
        "import sys, numpy, podrt.tensors.view as t; t.view(numpy.zeros(2), 'q'); "
        "print([m for m in ('cupy', 'cuda.core', 'torch', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_cuda_core_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    with pytest.raises(DeviceError, match=r"q: .*cuda\.core.*podrt\[cuda13\]"):
        view(Exporter(np.zeros(2)), "q")


class TestExchangeProtocols:
    @pytest.fixture(autouse=True)
    def _cuda_core(self):
        pytest.importorskip("cuda.core.utils")

    def test_dlpack_producer_is_not_copied(self):
        array = np.zeros((4, 6), np.int32)
        seen = view(Exporter(array[::2, ::3]), "block_table")
        assert (seen.pointer, seen.shape, seen.strides) == (array.ctypes.data, (2, 2), (12, 3))
        assert (seen.dtype, seen.device, seen.framework) == ("int32", None, "other")
        assert seen.writable

    @pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (0, 3)])
    def test_contiguous_strides_are_row_major(self, shape):
        seen = view(Exporter(np.zeros(shape, np.float16)), "q")
        assert seen.shape == shape
        if 0 not in shape:
            assert seen.strides == tuple(s // 2 for s in np.zeros(shape, np.float16).strides)

    def test_host_producer_is_given_no_stream(self):
        exporter = Exporter(np.zeros(2))
        view(exporter, "q", stream=5)
        assert exporter.streams == [None]

    def test_byte_offset_counts(self):
        """PyTorch and others export a slice as the whole allocation and an offset."""
        array = np.arange(24, dtype=np.int32).reshape(6, 4)

        class Offset(Exporter):
            def __dlpack__(self, **options):
                return with_byte_offset(super().__dlpack__(), array[:4].nbytes // 2)

        seen = view(Offset(array[:4]), "q")  # stands for array[2:6]
        assert (seen.pointer, seen.shape) == (array[2:].ctypes.data, (4, 4))

    def test_read_only_flag_is_kept(self):
        array = np.zeros(3)
        array.flags.writeable = False
        assert not view(Exporter(array), "q").writable

    def test_memory_lives_as_long_as_the_view(self):
        array = np.arange(3)
        alive = weakref.ref(array)
        seen = view(Exporter(array), "q")
        del array
        gc.collect()
        assert alive() is not None
        assert seen.shape == (3,)

    def test_failed_export_names_the_argument(self):
        class Refuses(Exporter):
            def __dlpack__(self, **options):
                raise BufferError("lives elsewhere")

        with pytest.raises(TypeError, match=r"q: this Refuses .*lives elsewhere"):
            view(Refuses(np.zeros(2)), "q")

    def test_jax_arrays_are_never_writable(self):
        array_impl = type("ArrayImpl", (Exporter,), {"__module__": "jaxlib._jax"})
        seen = view(array_impl(np.zeros(2)), "out")
        assert seen.framework == "jax"
        assert not seen.writable

    @pytest.mark.parametrize(("given", "passed_on"), [(0, 1), (1, 1), (2, 2), (4096, 4096)])
    def test_device_producer_waits_for_by_the_launch_stream(self, given, passed_on):
        class OnGpu(Exporter):
            def __dlpack_device__(self):
                return (2, 0)  # kDLCUDA

        exporter = OnGpu(np.zeros(2, np.float16))
        seen = view(exporter, "q", stream=given)
        assert exporter.streams == [passed_on]
        assert (seen.device, seen.place) == (0, "cuda:0")


@pytest.mark.parametrize(
    ("is_cuda", "is_cpu", "device"), [(True, False, 1), (False, True, None)], ids=["cuda", "cpu"]
)
def test_torch_tensor_is_read_through_its_attributes(is_cuda, is_cpu, device):
    tensor = fake_torch_tensor(is_cuda=is_cuda, is_cpu=is_cpu)
    seen = view(tensor, "q")
    assert (seen.pointer, seen.shape, seen.strides) == (4096, (2, 8), (16, 1))
    assert (seen.dtype, seen.device, seen.framework) == ("bfloat16", device, "torch")
    assert seen.owner is tensor


def test_torch_tensor_elsewhere_is_refused():
    with pytest.raises(ValueError, match="q: lies on meta"):
        view(fake_torch_tensor(is_cuda=False, is_cpu=False), "q")


def fake_torch_tensor(*, is_cuda, is_cpu):
    members = {
        "__module__": "torch",
        "is_cuda": is_cuda,
        "is_cpu": is_cpu,
        "device": "meta",
        "shape": [2, 8],
        "dtype": "torch.bfloat16",
        "get_device": lambda self: 1,
        "data_ptr": lambda self: 4096,
        "stride": lambda self: (16, 1),
    }
    return type("Tensor", (), members)()
