"""Build one podrt kernel, run it on inputs made from a seed, and compare with float64.

python run.py [RUNS]: RUNS launches (1); their median time too, where there are several.
"""

import json
import struct
import sys
from pathlib import Path
from statistics import median

import cupy
import numpy as np
from tools import TOLERANCES, compile_cubin, reference, tensor_map, to_bits, to_float

HERE = Path(__file__).resolve().parent
launch = json.loads((HERE / "launch.json").read_text())
runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1

# Inputs, page numbers, the plan (work items behind a header), counters and partial results.
rng = np.random.default_rng(launch["seed"])
normal = {name: rng.standard_normal(shape, np.float32) for name, shape in launch["inputs"].items()}
bits = {name: to_bits(values, launch["dtype"]) for name, values in normal.items()}
gpu = {name: cupy.asarray(values) for name, values in bits.items()}
out_shape = (*bits["q"].shape[:2], bits["v_cache"].shape[3])
gpu["out"] = cupy.asarray(np.full(out_shape, 0x7FFF, np.uint16))  # NaN
gpu["page_table"] = cupy.asarray(np.array(launch["page_table"] or [0], np.int32))
gpu |= {name: cupy.zeros(nbytes, "uint8") for name, nbytes in launch["scratch_bytes"].items()}
plan = bytearray((HERE / "plan.bin").read_bytes())
struct.pack_into("<Q", plan, launch["page_table_offset"], gpu["page_table"].data.ptr)
gpu["plan"] = cupy.asarray(np.frombuffer(plan, np.uint8))

# The kernel's only parameter: a struct of addresses, tensor maps and numbers.
params = bytearray(launch["params_bytes"])
for offset, kind, value, *shape in launch["params"]:
    if kind == "map":
        params[offset : offset + 128] = tensor_map(gpu[value].data.ptr, *shape, launch["dtype"])
    else:
        number = gpu[value].data.ptr if kind == "address" else value
        struct.pack_into(
            {"address": "<Q", "int": "<i", "uint": "<I", "float": "<f"}[kind],
            params,
            offset,
            number,
        )

module = cupy.cuda.function.Module()
module.load(compile_cubin(HERE / "kernel.cu", launch["options"]))
kernel, smem_bytes = module.get_function(launch["entry"]), launch["smem_bytes"]
most_smem = cupy.cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
cupy.cuda.driver.funcSetAttribute(kernel.ptr, most_smem, smem_bytes)
packed, stream, times_us = np.frombuffer(params, f"V{len(params)}"), cupy.cuda.Stream.null, []
for _ in range(runs):
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    kernel((launch["grid"],), (launch["threads"],), (packed,), smem_bytes, stream)
    end.record()
    end.synchronize()
    times_us.append(1e3 * cupy.cuda.get_elapsed_time(begin, end))

expected = reference({name: to_float(b, launch["dtype"]) for name, b in bits.items()}, launch)
got, allowed = to_float(gpu["out"].get(), launch["dtype"]), TOLERANCES[launch["dtype"]]
errors = np.abs(got - expected).max(axis=2) / np.abs(expected).max(axis=2)
row, head = np.unravel_index(errors.argmax(), errors.shape)
if runs > 1:
    print(f"median of {runs} runs: {median(times_us):.1f} us, the L2 cache warm")
print(f"largest error {errors[row, head]:.2g} (row {row} of q, head {head}), allowed {allowed:.2g}")
sys.exit(0 if errors[row, head] <= allowed else "WRONG")  # NaN too
