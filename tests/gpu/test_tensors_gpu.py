"""Tensors, outputs and streams of real frameworks on a real GPU."""

import gc

import ml_dtypes
import numpy as np
import pytest
from gpu_support import SPIN, SPIN_CYCLES

from podrt.errors import DeviceError
from podrt.gpu.device import current_device, device_info
from podrt.tensors.checks import require_dtype, require_same_device
from podrt.tensors.host import host_array, to_numpy
from podrt.tensors.outputs import empty_like_caller, finish
from podrt.tensors.streams import cupy_stream, resolve_stream
from podrt.tensors.view import view

cupy = pytest.importorskip("cupy")


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


@pytest.fixture
def jax():
    module = pytest.importorskip("jax")
    if module.default_backend() != "gpu":
        pytest.skip("this JAX has no CUDA")
    return module


@pytest.fixture(scope="module")
def fill_late():
    """Return a function that fills 32 int32 values on CuPy's current stream, after a while."""
    kernel = cupy.RawKernel(SPIN, "fill_late")
    return lambda array, value: kernel((1,), (32,), (array, np.int32(value), SPIN_CYCLES))


class DlpackOnly:
    def __init__(self, array):
        self.array, self.streams = array, []

    def __dlpack__(self, *, stream=None, **options):
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream, **options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class CaiOnly:
    def __init__(self, array, stream=None):
        self.array = array
        self.__cuda_array_interface__ = dict(array.__cuda_array_interface__, stream=stream)


def test_device_is_described():
    info = current_device()
    assert info is device_info(info.ordinal)
    assert info.num_sms > 0
    assert info.l2_bytes > 0
    assert info.total_memory_bytes > 2**30
    assert info.arch.compute_capability >= (8, 0)


def test_device_that_is_not_there():
    with pytest.raises(DeviceError, match="GPU 99"):
        device_info(99)


class TestCupy:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, ml_dtypes.bfloat16])
    def test_described_where_it_lies(self, dtype):
        array = cupy.empty((3, 4, 64), dtype)
        seen = view(array, "q")
        assert (seen.pointer, seen.owner, seen.framework) == (array.data.ptr, array, "cupy")
        assert (seen.shape, seen.strides) == ((3, 4, 64), (256, 64, 1))
        assert (seen.dtype, seen.device) == (np.dtype(dtype).name, array.device.id)

    def test_slices_and_transposes_are_not_copied(self):
        array = cupy.empty((8, 4, 64), cupy.float16)
        cut = view(array[2:, ::2, 8:], "k_cache")
        assert cut.pointer == array.data.ptr + 2 * (2 * 256 + 8)
        assert cut.strides == (256, 128, 1)
        assert view(array.transpose(1, 0, 2), "k_cache").strides == (64, 256, 1)

    def test_downloads_keep_layout_and_values(self):
        array = cupy.arange(60, dtype=cupy.int32).reshape(3, 4, 5)
        for cut in (array, array[:, ::-1, 1:3], array.transpose(2, 0, 1), array[::-1], array[:0]):
            np.testing.assert_array_equal(to_numpy(view(cut, "x")), cut.get())

    def test_bfloat16_downloads(self):
        values = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
        array = cupy.empty((2, 3), ml_dtypes.bfloat16)
        array.data.copy_from_host(values.ctypes.data, values.nbytes)
        np.testing.assert_array_equal(to_numpy(view(array, "q")), values)

    def test_lengths_on_the_device(self):
        assert host_array(cupy.array([0, 3, 7], cupy.int32), "qo_indptr").tolist() == [0, 3, 7]
        with pytest.raises(TypeError, match=r'kv_lens\.astype\("int32"\)'):
            host_array(cupy.array([0, 3, 7]), "kv_lens")

    def test_lengths_are_read_after_the_current_streams_work(self, fill_late):
        array = cupy.zeros(32, cupy.int32)
        cupy.cuda.Device().synchronize()
        with cupy.cuda.Stream(non_blocking=True):
            fill_late(array, 7)
            assert host_array(array, "kv_lens").tolist() == [7] * 32

    @pytest.mark.parametrize(("dtype", "name"), [("same", "bfloat16"), ("float32", "float32")])
    def test_output(self, dtype, name):
        q = view(cupy.empty((2, 3), ml_dtypes.bfloat16), "q")
        output = empty_like_caller(q, (4, 5), dtype)
        assert isinstance(output, cupy.ndarray)
        assert (output.shape, output.dtype.name, output.device.id) == ((4, 5), name, q.device)
        assert finish(output, q) is output

    def test_output_memory_is_reused_in_the_order_of_its_stream(self):
        stream, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        q = view(cupy.empty(1, cupy.float16), "q")
        with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
            pointer = empty_like_caller(q, (1000,), stream=stream.ptr).data.ptr
            elsewhere = empty_like_caller(q, (1000,), stream=other.ptr)
            again = empty_like_caller(q, (1000,), stream=stream.ptr)
            assert elsewhere.data.ptr != pointer
            assert again.data.ptr == pointer
        assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null

    def test_streams(self):
        stream = cupy.cuda.Stream(non_blocking=True)
        like = cupy.empty(1)
        assert resolve_stream(stream) == stream.ptr
        assert resolve_stream(None, like) == 0
        with stream:
            assert resolve_stream(None, like) == stream.ptr

    def test_wrapping_a_handle_does_not_own_the_stream(self):
        stream = cupy.cuda.Stream(non_blocking=True)
        wrapped = cupy_stream(stream.ptr)
        assert wrapped.ptr == stream.ptr
        del wrapped
        gc.collect()
        stream.synchronize()


class TestProtocols:
    @pytest.mark.parametrize("wrapper", [DlpackOnly, CaiOnly])
    def test_described_where_it_lies(self, wrapper):
        array = cupy.arange(24, dtype=cupy.float16).reshape(4, 6)[1:, ::2]
        seen = view(wrapper(array), "k_cache")
        assert (seen.pointer, seen.shape) == (array.data.ptr, (3, 3))
        assert (seen.strides, seen.dtype) == ((6, 2), "float16")
        assert (seen.device, seen.framework, seen.writable) == (array.device.id, "other", True)

    @pytest.mark.parametrize("wrapper", [DlpackOnly, CaiOnly])
    def test_contiguous_strides_are_row_major(self, wrapper):
        assert view(wrapper(cupy.empty((2, 3, 4), cupy.float32)), "q").strides == (12, 4, 1)

    def test_dlpack_producer_is_told_the_stream(self):
        stream = cupy.cuda.Stream(non_blocking=True)
        exporter = DlpackOnly(cupy.empty(4, cupy.float16))
        view(exporter, "q", stream.ptr)
        view(exporter, "q")
        assert exporter.streams == [stream.ptr, 1]

    def test_dlpack_work_is_waited_for(self, fill_late):
        self.check_waits(fill_late, lambda array, producer: DlpackOnly(array))

    def test_cai_stream_is_waited_for(self, fill_late):
        self.check_waits(fill_late, lambda array, producer: CaiOnly(array, producer.ptr))

    @staticmethod
    def check_waits(fill_late, wrap):
        array = cupy.zeros(32, cupy.int32)
        consumer, producer = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        cupy.cuda.Device().synchronize()
        with producer:
            fill_late(array, 7)
            seen = view(wrap(array, producer), "x", consumer.ptr)
        assert to_numpy(seen, consumer.ptr).tolist() == [7] * 32

    @pytest.mark.parametrize("wrapper", [DlpackOnly, CaiOnly])
    def test_output_is_a_cupy_array(self, wrapper):
        q = view(wrapper(cupy.empty((2, 3), cupy.float16)), "q")
        output = empty_like_caller(q, (2, 3))
        assert isinstance(output, cupy.ndarray)
        assert finish(output, q) is output

    def test_lengths_on_the_device(self):
        lengths = DlpackOnly(cupy.array([1, 2], cupy.int32))
        assert host_array(lengths, "kv_lens").tolist() == [1, 2]


class TestTorch:
    def test_described_where_it_lies(self, torch):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int32):
            tensor = torch.empty((3, 4, 64), dtype=dtype, device="cuda")
            seen = view(tensor, "q")
            assert (seen.pointer, seen.owner) == (tensor.data_ptr(), tensor)
            assert (seen.shape, seen.strides) == ((3, 4, 64), (256, 64, 1))
            assert f"torch.{seen.dtype}" == str(dtype)
            assert (seen.device, seen.framework) == (tensor.device.index, "torch")

    def test_slices_and_transposes_are_not_copied(self, torch):
        tensor = torch.empty((8, 4, 64), dtype=torch.bfloat16, device="cuda")
        cut = view(tensor[2:, ::2, 8:], "k_cache")
        assert cut.pointer == tensor.data_ptr() + 2 * (2 * 256 + 8)
        assert cut.strides == (256, 128, 1)
        assert view(tensor.transpose(0, 1), "k_cache").strides == (64, 256, 1)

    def test_parameters_and_gradients_do_not_matter(self, torch):
        parameter = torch.nn.Parameter(torch.empty(4, dtype=torch.float16, device="cuda"))
        assert view(parameter, "q").pointer == parameter.data_ptr()

    def test_bfloat16_downloads(self, torch):
        tensor = torch.arange(12, device="cuda").reshape(3, 4).to(torch.bfloat16)[:, 1:]
        array = to_numpy(view(tensor, "q"))
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array.astype(np.float32), tensor.float().cpu().numpy())

    def test_lengths(self, torch):
        for device in ("cuda", "cpu"):
            lengths = torch.tensor([0, 3, 7], dtype=torch.int32, device=device)
            assert host_array(lengths, "qo_indptr").tolist() == [0, 3, 7]
            with pytest.raises(TypeError, match=r"kv_lens\.to\(torch\.int32\)"):
                host_array(lengths.long(), "kv_lens")

    def test_lengths_are_read_after_the_current_streams_work(self, torch):
        lengths = torch.zeros(32, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(SPIN_CYCLES)
            lengths.fill_(7)
            assert host_array(lengths, "kv_lens").tolist() == [7] * 32

    def test_host_and_device_do_not_mix(self, torch):
        q = view(torch.empty(4, device="cuda"), "q")
        with pytest.raises(ValueError, match="k_cache: lies on host memory, expected cuda:"):
            require_same_device(q, view(torch.empty(4), "k_cache"))
        with pytest.raises(TypeError, match=r"q\.to\(torch\.bfloat16\)"):
            require_dtype(q, "bfloat16", "float16")

    def test_output(self, torch):
        tensor = torch.empty((2, 3), dtype=torch.bfloat16, device="cuda")
        q = view(tensor, "q")
        output = empty_like_caller(q, (4, 5))
        assert (output.shape, output.dtype) == ((4, 5), torch.bfloat16)
        assert output.device == tensor.device
        assert empty_like_caller(q, (4,), "float32").dtype == torch.float32
        assert finish(output, q) is output

    def test_output_memory_is_reused_in_the_order_of_its_stream(self, torch):
        stream, other = torch.cuda.Stream(), torch.cuda.Stream()
        before = torch.cuda.current_stream()
        q = view(torch.empty(1, dtype=torch.float16, device="cuda"), "q")
        pointer = empty_like_caller(q, (10_000,), stream=stream.cuda_stream).data_ptr()
        elsewhere = empty_like_caller(q, (10_000,), stream=other.cuda_stream)
        again = empty_like_caller(q, (10_000,), stream=stream.cuda_stream)
        assert elsewhere.data_ptr() != pointer
        assert again.data_ptr() == pointer
        assert torch.cuda.current_stream() == before

    def test_output_on_the_default_stream_from_within_another(self, torch):
        q = view(torch.empty(1, dtype=torch.float16, device="cuda"), "q")
        pointer = empty_like_caller(q, (10_000,)).data_ptr()
        with torch.cuda.stream(torch.cuda.Stream()):
            assert empty_like_caller(q, (10_000,)).data_ptr() == pointer

    def test_streams(self, torch):
        stream, like = torch.cuda.Stream(), torch.empty(1, device="cuda")
        assert resolve_stream(stream) == stream.cuda_stream
        assert resolve_stream(None, like) == torch.cuda.default_stream().cuda_stream
        with torch.cuda.stream(stream):
            assert resolve_stream(None, like) == stream.cuda_stream
            assert resolve_stream(None, torch.empty(1)) == 0


class TestJax:
    def test_described_where_it_lies(self, jax):
        for dtype in ("float16", "bfloat16", "float32", "int32"):
            array = jax.numpy.zeros((3, 64), dtype)
            seen = view(array, "q")
            assert seen.pointer == array.unsafe_buffer_pointer()
            assert (seen.shape, seen.strides, seen.dtype) == ((3, 64), (64, 1), dtype)
            assert (seen.device, seen.framework, seen.writable) == (0, "jax", False)

    def test_pending_work_is_waited_for(self, jax):
        stream = cupy.cuda.Stream(non_blocking=True)
        ones = jax.numpy.ones((2048, 2048), "float32")
        busy = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: (y @ x) / 2048, x))
        busy(ones).block_until_ready()
        array = to_numpy(view(busy(ones), "q", stream.ptr), stream.ptr)
        np.testing.assert_allclose(array, 1, rtol=1e-3)

    def test_lengths(self, jax):
        lengths = jax.numpy.array([0, 3, 7], "int32")
        assert host_array(lengths, "qo_indptr").tolist() == [0, 3, 7]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_output_becomes_a_jax_array_over_the_same_memory(self, jax, dtype):
        q = view(jax.numpy.zeros((2, 3), dtype), "q")
        output = empty_like_caller(q, (4, 32))
        pointer = output.data.ptr
        output.data.memset(0, output.nbytes)
        result = finish(output, q)
        assert isinstance(result, jax.Array)
        assert (result.shape, result.dtype.name) == ((4, 32), dtype)
        assert result.unsafe_buffer_pointer() == pointer
        assert not np.asarray(result, np.float32).any()

    def test_jax_waits_for_the_launch_stream(self, jax, fill_late):
        stream = cupy.cuda.Stream(non_blocking=True)
        q = view(jax.numpy.zeros(32, "int32"), "q", stream.ptr)
        output = empty_like_caller(q, (32,), stream=stream.ptr)
        with stream:
            fill_late(output, 7)
        assert np.asarray(finish(output, q, stream.ptr)).tolist() == [7] * 32
