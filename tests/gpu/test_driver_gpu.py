"""The CUDA calls of the runtime, on a real driver."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpu_support import busy_maker, skip_with_one_gpu

cupy = pytest.importorskip("cupy")

from podrt.runtime.driver import Driver, uncaptured  # noqa: E402

PER_THREAD = 2  # cudaStreamPerThread


@pytest.fixture
def driver():
    return Driver(0)


@pytest.fixture
def stream():
    return cupy.cuda.Stream(non_blocking=True)


def in_fresh_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


def test_capture_is_seen(driver, stream):
    assert not driver.is_capturing(stream.ptr)
    assert driver.capture_of(stream.ptr) is None
    seen = []
    for _ in range(2):
        stream.begin_capture()
        assert driver.is_capturing(stream.ptr)
        seen.append(driver.capture_of(stream.ptr))
        assert driver.capture_of(stream.ptr) == seen[-1]
        stream.end_capture()
    assert seen[0] != seen[1]
    assert not driver.is_capturing(stream.ptr)
    assert not any(driver.is_capturing(handle) for handle in (0, 1, PER_THREAD))


def test_capture_by_torch_is_seen(driver):
    torch = pytest.importorskip("torch")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    tensor = torch.zeros(4, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        capturing = driver.is_capturing(stream.cuda_stream)
        with uncaptured():  # or the capture would be invalid
            memory = driver.allocate(1000, driver.private_stream().ptr)
        tensor += 1
    assert capturing
    assert memory.nbytes == 1000
    assert not driver.is_capturing(stream.cuda_stream)


def test_streams_have_names_that_are_not_their_handles(driver, stream):
    other = cupy.cuda.Stream(non_blocking=True)
    names = [driver.stream_key(s.ptr) for s in (stream, other, stream)]
    assert names[0] == names[2] != names[1]
    assert driver.stream_key(0) == driver.stream_key(1)


def test_per_thread_streams_have_a_name_each(driver):
    def name():
        with driver.current():
            return driver.stream_key(PER_THREAD)

    assert name() == name() != in_fresh_thread(name)


def test_a_fresh_thread_gets_the_gpu(driver):
    def before_and_within():
        before = driver.is_current()
        with driver.current():
            return before, driver.is_current()

    assert driver.is_current()
    assert in_fresh_thread(before_and_within) == (False, True)


def test_the_gpu_that_was_current_is_so_again():
    skip_with_one_gpu()
    with cupy.cuda.Device(0):
        other = Driver(1)
        assert not other.is_current()
        with other.current():
            assert other.is_current()
            assert cupy.cuda.runtime.getDevice() == 1
        assert cupy.cuda.runtime.getDevice() == 0


def test_copies_are_ordered_and_wait_for_nobody(driver, stream):
    busy = busy_maker()
    pinned, memory = driver.allocate_pinned(64), driver.allocate(64, stream.ptr)
    cupy.cuda.Device().synchronize()
    event = driver.event()
    assert driver.have_happened([event]) == [True]  # it was never recorded
    driver.clear(memory.pointer, 64, stream.ptr)
    with stream:
        busy()
    pinned.bytes[:] = np.arange(64)
    driver.upload(memory.pointer, pinned.address, 64, stream.ptr)
    driver.record(event, stream.ptr)
    assert driver.have_happened([event]) == [False]  # nor did the host wait
    stream.synchronize()
    assert driver.have_happened([event]) == [True]
    got = np.empty(64, np.uint8)
    cupy.cuda.runtime.memcpy(
        got.ctypes.data, memory.pointer, 64, cupy.cuda.runtime.memcpyDeviceToHost
    )
    assert (got == np.arange(64)).all()


def test_memory_may_be_taken_beside_a_capture(driver, stream):
    capturing = cupy.cuda.Stream(non_blocking=True)
    capturing.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    memory, pinned = driver.allocate(3_000_000, stream.ptr), driver.allocate_pinned(100)
    driver.clear(memory.pointer, memory.nbytes, stream.ptr)
    capturing.end_capture()
    stream.synchronize()
    assert len(pinned.bytes) == 100
