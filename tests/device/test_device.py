import sys
from types import SimpleNamespace

import pytest

from podrt.errors import DeviceError, UnsupportedConfigError
from podrt.gpu import device
from podrt.gpu.arch import ARCHS


class CudaError(RuntimeError):
    pass


H100 = {
    "name": b"NVIDIA H100 80GB HBM3",
    "major": 9,
    "minor": 0,
    "multiProcessorCount": 132,
    "totalGlobalMem": 85_000_000_000,
    "l2CacheSize": 50 * 2**20,
}


class FakeRuntime:
    CUDARuntimeError = CudaError

    def __init__(self, error=None, memory=(2_619_000, 5120), **properties):
        self.error, self.properties, self.questions = error, H100 | properties, 0
        self.memory = dict(zip((36, 37), memory, strict=True))  # clock in kHz, bus width in bits

    def getDevice(self):
        if self.error:
            raise CudaError(self.error)
        return 1

    def deviceGetAttribute(self, attribute, ordinal):
        return self.memory[attribute]

    def getDeviceProperties(self, ordinal):
        self.questions += 1
        if self.error:
            raise CudaError(self.error)
        return self.properties


@pytest.fixture
def fake_runtime(monkeypatch):
    def install(**kwargs):
        runtime = FakeRuntime(**kwargs)
        cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
        monkeypatch.setattr(device, "load_cupy", lambda: cupy)
        return runtime

    device.device_info.cache_clear()
    yield install
    device.device_info.cache_clear()


def test_current_device_is_described(fake_runtime):
    fake_runtime()
    info = device.current_device()
    assert (info.ordinal, info.name, info.arch.name) == (1, "NVIDIA H100 80GB HBM3", "sm_90a")
    assert (info.num_sms, info.l2_bytes) == (132, 50 * 2**20)
    assert info.total_memory_bytes == 85_000_000_000
    assert info.memory_gbs == pytest.approx(3352.3, abs=0.1)


@pytest.mark.parametrize("memory", [(0, 5120), (2_619_000, 0), (0, 0)])
def test_memory_that_the_driver_does_not_describe_is_that_of_a_usual_gpu(fake_runtime, memory):
    fake_runtime(memory=memory)
    assert device.current_device().memory_gbs == pytest.approx(3352, abs=1)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: arch.name)
def test_every_architecture_has_a_usual_bandwidth(fake_runtime, arch):
    major, minor = arch.compute_capability
    fake_runtime(memory=(0, 0), major=major, minor=minor)
    assert device.device_info(0).memory_gbs > 100


def test_driver_is_asked_once_for_each_device(fake_runtime):
    runtime = fake_runtime()
    assert device.device_info(0) is device.device_info(0)
    assert device.device_info(1).ordinal == 1
    assert runtime.questions == 2


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("cudaErrorInsufficientDriver: too old", "install an NVIDIA driver"),
        ("cudaErrorNoDevice: none", "CUDA_VISIBLE_DEVICES"),
        ("cudaErrorUnknown: unknown error", "unknown error"),
    ],
)
def test_cuda_errors_say_what_is_missing(fake_runtime, error, advice):
    fake_runtime(error=error)
    with pytest.raises(DeviceError, match=advice):
        device.current_device()
    with pytest.raises(DeviceError, match="GPU 7"):
        device.device_info(7)


def test_gpu_older_than_supported_is_refused(fake_runtime):
    fake_runtime(major=7, minor=0)
    with pytest.raises(UnsupportedConfigError, match=r"7\.0"):
        device.current_device()


def test_missing_cupy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"podrt\[cuda13\]"):
        device.current_device()


def test_cupy_that_cannot_make_its_folder_names_the_variable(monkeypatch):
    class Refuses:
        def find_spec(self, name, *_):
            if name == "cupy":
                raise PermissionError(13, "Permission denied", "/home/nobody/.cupy")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    monkeypatch.setenv("CUPY_CACHE_DIR", "/home/nobody/.cupy")
    with pytest.raises(DeviceError, match=r"Permission denied.*set CUPY_CACHE_DIR"):
        device.load_cupy()
