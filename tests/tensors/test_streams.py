import sys
from types import SimpleNamespace

import numpy as np
import pytest

from podrt.tensors.streams import _torch_stream_of, cupy_stream, resolve_stream


class ProtocolStream:
    def __init__(self, version=0, handle=77):
        self.answer = (version, handle)

    def __cuda_stream__(self):
        return self.answer


class PropertyStream:
    __cuda_stream__ = (0, 78)


def fake_torch_tensor(*, is_cuda):
    kind = type("Tensor", (), {"__module__": "torch"})
    tensor = kind()
    tensor.is_cuda, tensor.get_device = is_cuda, lambda: 1
    return tensor


@pytest.mark.parametrize("handle", [0, 1, 2, 2**63, 2**64 - 1])
def test_int_is_the_handle_itself(handle):
    assert resolve_stream(handle) == handle


def test_streams_of_other_libraries():
    assert resolve_stream(ProtocolStream()) == 77
    assert resolve_stream(PropertyStream()) == 78
    assert resolve_stream(SimpleNamespace(cuda_stream=79)) == 79


def test_cupy_stream():
    cupy = pytest.importorskip("cupy")
    assert resolve_stream(cupy.cuda.Stream.null) == 0
    assert resolve_stream(cupy.cuda.Stream.ptds) == 2


def test_handle_as_cupy_stream():
    pytest.importorskip("cupy")
    assert resolve_stream(cupy_stream(80)) == 80


@pytest.mark.parametrize("like", [None, np.zeros(1), fake_torch_tensor(is_cuda=False)])
def test_none_without_a_gpu_framework_is_the_legacy_stream(like):
    assert resolve_stream(None, like) == 0


@pytest.mark.parametrize("is_raw", [True, False])
def test_none_is_the_current_torch_stream_of_the_tensors_device(monkeypatch, is_raw):
    streams = {0: 5, 1: 6}
    cuda = SimpleNamespace(current_stream=lambda d: SimpleNamespace(cuda_stream=streams[d]))
    raw = {"_cuda_getCurrentRawStream": streams.get} if is_raw else {}
    torch = SimpleNamespace(cuda=cuda, _C=SimpleNamespace(**raw))
    monkeypatch.setitem(sys.modules, "torch", torch)
    _torch_stream_of.cache_clear()
    assert resolve_stream(None, fake_torch_tensor(is_cuda=True)) == 6
    _torch_stream_of.cache_clear()


def test_none_is_the_current_cupy_stream_of_the_arrays_device(monkeypatch):
    cuda = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=40 + device))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    array = type("ndarray", (), {"__module__": "cupy"})()
    array.data = SimpleNamespace(device_id=2)
    assert resolve_stream(None, array) == 42


def test_given_stream_wins_over_the_frameworks_current_one():
    assert resolve_stream(9, fake_torch_tensor(is_cuda=True)) == 9


@pytest.mark.parametrize("stream", ["0", 1.0, True, object()])
def test_anything_else_is_refused(stream):
    with pytest.raises(TypeError, match=f"stream: got {type(stream).__name__}"):
        resolve_stream(stream)


@pytest.mark.parametrize("handle", [-1, 2**64])
def test_impossible_handles_are_refused(handle):
    with pytest.raises(ValueError, match="stream="):
        resolve_stream(handle)


def test_unknown_protocol_version_is_refused():
    with pytest.raises(ValueError, match="version 3"):
        resolve_stream(ProtocolStream(version=3))
