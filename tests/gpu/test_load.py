from __future__ import annotations

import threading

import numpy as np
import pytest

from podrt import jit
from podrt.errors import DeviceError
from podrt.gpu.arch import arch_of
from podrt.gpu.occupancy import occupancy

cp = pytest.importorskip("cupy")

TEXT = """
struct Args { float* out; int offset; float scale; };
extern "C" __global__ void fill(Args args) {
  extern __shared__ float staged[];
  staged[threadIdx.x] = args.scale * (blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  args.out[args.offset + blockIdx.x * blockDim.x + threadIdx.x] = staged[threadIdx.x];
}
"""
ARGS = np.dtype([("out", np.uintp), ("offset", np.int32), ("scale", np.float32)])
THREADS = 128
SMEM_BYTES = 96 * 1024  # more than the 48 KiB that need no opting in


def source_for(arch: str) -> jit.KernelSource:
    return jit.KernelSource("fill", arch, TEXT, "fill")


@pytest.fixture(scope="module")
def arch():
    return arch_of(tuple(map(int, divmod(int(cp.cuda.Device(0).compute_capability), 10))))


@pytest.fixture(scope="module")
def kernel(arch):
    return jit.load(jit.compile_source(source_for(arch.name)), 0)


def launch(kernel, out, stream_handle=0, grid=(4,), smem_bytes=SMEM_BYTES, threads=THREADS):
    args = np.array([(out.data.ptr, 2, 0.5)], dtype=ARGS)
    kernel(grid, args, smem_bytes=smem_bytes, threads=threads, stream_handle=stream_handle)
    args["out"] = 0  # passed by value: the launch must not see this


def expected():
    values = np.zeros(4 * THREADS + 2, np.float32)
    values[2:] = 0.5 * np.arange(4 * THREADS)
    return values


def test_launch_passes_the_struct_by_value(kernel):
    out = cp.zeros(4 * THREADS + 2, cp.float32)
    launch(kernel, out)
    np.testing.assert_array_equal(out.get(), expected())


def test_launch_is_ordered_on_the_given_stream(kernel):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        out = cp.zeros(4 * THREADS + 2, cp.float32)
    launch(kernel, out, stream_handle=stream.ptr)
    stream.synchronize()
    np.testing.assert_array_equal(out.get(), expected())


def test_attributes_and_residency(kernel, arch):
    assert kernel.attributes.registers == kernel.build.resources.registers
    assert kernel.attributes.local_bytes == 0
    assert kernel.attributes.max_dynamic_smem_bytes == arch.smem_per_cta_bytes
    by_driver = cp.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
        kernel.function, THREADS, SMEM_BYTES
    )
    registers = kernel.attributes.registers
    ours = occupancy(arch, threads=THREADS, registers=registers, smem_bytes=SMEM_BYTES)
    assert ours.ctas_per_sm == by_driver


def test_loaded_once_per_device_also_from_threads(kernel):
    seen = set()
    threads = [
        threading.Thread(target=lambda: seen.add(id(jit.load(kernel.build, 0)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {id(kernel)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (0,)}, r"grid=\(0,\)"),
        ({"grid": (1, 1, 1, 1)}, "grid="),
        ({"smem_bytes": 1 << 20}, "smem_bytes=1048576: fill takes 0 to"),
        ({"threads": 2048}, "threads=2048: fill takes 1 to 1024"),
    ],
)
def test_impossible_launch_is_refused(kernel, change, message):
    with pytest.raises(ValueError, match=message):
        launch(kernel, cp.zeros(1, cp.float32), **change)


def test_cubin_of_another_architecture_is_a_device_error(arch):
    other = "sm_120" if arch.name != "sm_120" else "sm_80"
    with pytest.raises(DeviceError, match=f"compiled for {other}"):
        jit.load(jit.compile_source(source_for(other)), 0)
