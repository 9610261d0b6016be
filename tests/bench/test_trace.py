"""A measured timeline, from a GPU that is not there."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from podrt.bench import trace
from podrt.kernels.tracing import BUFFER_DTYPE, EVENT_DTYPE, TRACE_SYMBOL, recorded


class Array(np.ndarray):
    """Stands for an array of CuPy."""

    data = property(lambda self: SimpleNamespace(ptr=4096))

    def get(self):
        return np.array(self)


class Gpu:
    """Notes what symbols are set to, and that nothing runs meanwhile."""

    memcpyHostToDevice = 1

    def __init__(self):
        self.symbols, self.calls = {}, []
        self.cuda = SimpleNamespace(runtime=self, get_current_stream=lambda: self)

    def asarray(self, host):
        self.buffer = np.array(host).view(Array)
        return self.buffer

    def deviceSynchronize(self):
        self.calls.append("wait")

    def synchronize(self):
        self.calls.append("wait for the stream")

    def memcpy(self, to, source, nbytes, kind):
        assert nbytes == 8 and kind == 1
        self.calls.append("copy")
        self.symbols[to] = ctypes.c_uint64.from_address(source).value


class Kernel:
    def __init__(self, address):
        self.address = address

    def address_of(self, symbol):
        assert symbol == TRACE_SYMBOL
        return self.address


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(trace, "load_cupy", lambda: gpu)
    return gpu


def test_kernels_record_to_a_buffer_until_it_is_over(gpu):
    with trace.recording([Kernel(100), Kernel(200)], 6) as (clear, read):
        assert gpu.symbols == {100: 4096, 200: 4096}
        assert gpu.calls == ["wait", "copy", "copy", "wait"]
        header = gpu.buffer[: BUFFER_DTYPE.itemsize].view(np.ndarray).view(BUFFER_DTYPE)
        header["count"] = 8
        assert len(recorded(read()).events) == 6 and recorded(read()).lost == 2
        clear()
        assert len(recorded(read()).events) == recorded(read()).lost == 0
        assert header["room"] == 6
        assert len(read()) == BUFFER_DTYPE.itemsize + 7 * EVENT_DTYPE.itemsize
    assert gpu.symbols == {100: 0, 200: 0}
    assert gpu.calls[4:] == ["wait for the stream", "wait", "copy", "copy", "wait"]


def test_an_error_ends_it_too(gpu):
    with pytest.raises(KeyError), trace.recording([Kernel(100)], 6):
        raise KeyError
    assert gpu.symbols == {100: 0}
