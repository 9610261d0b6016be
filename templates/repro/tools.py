"""What run.py needs of NVRTC, of the driver and of arithmetic; nothing of podrt."""

import ctypes

import numpy as np
from cuda.bindings import nvrtc

#: Four rounding steps, relative to the largest value of a row.
TOLERANCES = {"bfloat16": 4 * 2.0**-8, "float16": 4 * 2.0**-11}


def compile_cubin(path, options):
    """Compile a file for the architecture that the options name; return the cubin."""
    program = call(nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), 0, [], []))
    arguments = [option.encode() for option in options]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
    log = bytearray(call(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    if int(status):
        raise SystemExit(log.decode())
    cubin = bytearray(call(nvrtc.nvrtcGetCUBINSize(program)))
    call(nvrtc.nvrtcGetCUBIN(program, cubin))
    return bytes(cubin)


def call(result):
    """Return what a function of NVRTC returns beside its status."""
    status, *values = result
    if int(status):
        raise SystemExit(f"NVRTC: {status.name}")
    return values[0] if values else None


def tensor_map(address, shape, strides, box, dtype):
    """Return the map of a tensor for the copy engine: 128-byte swizzle, zeros out of bounds."""
    u32, u64, rank = ctypes.c_uint32, ctypes.c_uint64, len(shape)
    memory = np.zeros(256, np.uint8)
    to = memory.ctypes.data + -memory.ctypes.data % 128
    status = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
        ctypes.c_void_p(to),
        {"float16": 6, "bfloat16": 9}[dtype],
        u32(rank),
        ctypes.c_void_p(address),
        (u64 * rank)(*shape),
        (u64 * (rank - 1))(*(2 * stride for stride in strides[1:])),
        (u32 * rank)(*box),
        (u32 * rank)(*[1] * rank),
        *(ctypes.c_int(choice) for choice in (0, 3, 0, 0)),
    )
    if status:
        raise SystemExit(f"cuTensorMapEncodeTiled: CUresult {status}")
    return ctypes.string_at(to, 128)


def to_bits(values, dtype):
    """Round float32 to 16 bits, as uint16."""
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def to_float(bits, dtype):
    """Return 16-bit numbers as float64."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def reference(inputs, launch):
    """Return exact attention of the batch, request by request."""
    q, begin = inputs["q"], 0
    out = np.zeros((*q.shape[:2], inputs["v_cache"].shape[3]), q.dtype)
    group, table = launch["group"], launch["page_table"]
    for number, (q_len, kv_len) in enumerate(launch["requests"]):
        keys, values = (_cache(inputs[f"{n}_cache"], number, kv_len, table) for n in ("k", "v"))
        keys, values = (np.repeat(each, group, axis=1) for each in (keys, values))
        rows = slice(begin, begin + q_len)
        scores, cap = np.einsum("thd,khd->htk", q[rows], keys), launch["soft_cap"]
        scores *= launch["sm_scale"]
        scores = cap * np.tanh(scores / cap) if cap else scores
        last = kv_len - q_len + np.arange(q_len) if launch["causal"] else np.full(q_len, kv_len)
        scores = np.where(np.arange(kv_len) > last[:, None], -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        out[rows], begin = np.einsum("htk,khd->thd", weights, values), begin + q_len
    return out


def _cache(cache, request, kv_len, table):
    """Return a request's keys or values: from its pages, or its row of a contiguous cache."""
    if table is None:
        return cache[request, :kv_len]
    pages = np.array(table)[request, : -(-kv_len // cache.shape[1])]
    return cache[pages].reshape(-1, *cache.shape[2:])[:kv_len]
