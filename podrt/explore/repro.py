"""A folder that builds and runs one variant by itself, without podrt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from podrt._version import __version__
from podrt.explore.alone import Alone
from podrt.gpu.device import DeviceInfo
from podrt.jit import CODE_OPTIONS, KernelSource, render, templates_dir
from podrt.kernels.arguments import (
    PLAN_BYTES_AT_LEAST,
    PLAN_HEADER_BYTES,
    PLAN_HEADER_DTYPE,
    Buffers,
    write_plan_header,
)
from podrt.kernels.families import Variant, family_of, grid_of, params_dtype, source_of
from podrt.kernels.portable.host import NUM_COUNTERS
from podrt.kernels.tensor_map import MapShape
from podrt.plan import Plan
from podrt.spec.attention import AttentionSpec
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import TensorView
from podrt.workloads.accuracy import tolerance_of
from podrt.workloads.lengths import describe_lengths
from podrt.workloads.pages import contiguous_rows, shuffled_pages

_FOLDER = "repro"
_SCRIPTS = ("run.py", "tools.py")
#: How numbers travel, by NumPy's kind.
_KINDS = {"i": "int", "u": "uint", "f": "float"}
#: Buffers whose addresses kernels are given, by the name of the argument; the rest are null.
_BUFFERS = {
    "q": "q",
    "k": "k_cache",
    "v": "v_cache",
    **{name: name for name in ("out", "plan", "partial_o", "partial_lse")},
    **{name: name for name in ("counters", "merge_counters")},
}
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)".*\n?', re.MULTILINE)
_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Repro:
    """What a folder is written from.

    Attributes
    ----------
    variant : Variant
    layer : AttentionSpec
    lengths : tuple of (q_len, kv_len)
        The batch.
    gpu : DeviceInfo
        The GPU that it is planned for.
    alone : Alone
        What launches the variant by itself.
    seed : int
        Of inputs and pages.
    """

    variant: Variant
    layer: AttentionSpec
    lengths: tuple[tuple[int, int], ...]
    gpu: DeviceInfo
    alone: Alone
    seed: int = 0

    @property
    def plan(self) -> Plan:
        """The plan that the kernel is given."""
        return self.alone.schedule.plan


def write_repro(repro: Repro, folder: Path) -> list[Path]:
    """Write the folder, and return its files.

    Raises
    ------
    FileExistsError
        There is something in it already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: has files in it; name a folder that is new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    source = source_of(repro.variant)
    files: dict[str, str | bytes] = {
        "kernel.cu": flat_source(source),
        "launch.json": _as_json(launch_of(repro, source)),
        "plan.bin": _plan_bytes(repro.plan),
        "README.md": _readme(repro),
    }
    for name in _SCRIPTS:
        files[name] = (templates_dir() / _FOLDER / name).read_text(encoding="utf-8")
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def flat_source(source: KernelSource) -> str:
    """Return a kernel's text with every header in the place of its first ``#include``."""
    headers, seen = dict(source.headers), set[str]()

    def expand(text: str) -> str:
        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name in seen:
                return ""
            seen.add(name)
            return f"// ---- {name}\n{expand(_ONCE.sub('', headers[name]))}// ---- end of {name}\n"

        return _INCLUDE.sub(put, text)

    return expand(source.text)


def launch_of(repro: Repro, source: KernelSource) -> dict[str, Any]:
    """Return what ``launch.json`` says: `templates/repro/run.py` reads it."""
    variant, layer, plan = repro.variant, repro.layer, repro.plan
    tensors, block_table = _tensors(repro)
    heads = plan.partial_rows * plan.num_kv_heads
    return {
        "entry": source.entry,
        "options": _options(source),
        "grid": grid_of(variant, plan, repro.gpu.num_sms),
        "threads": variant.threads,
        "smem_bytes": variant.smem_bytes,
        "dtype": layer.dtype,
        "group": layer.group,
        "sm_scale": layer.sm_scale,
        "causal": layer.mask.causal,
        "soft_cap": layer.logits_soft_cap,
        "seed": repro.seed,
        "requests": [list(each) for each in repro.lengths],
        "inputs": {t.name: list(t.shape) for t in (tensors.q, tensors.k_cache, tensors.v_cache)},
        "page_table": None if block_table is None else block_table.tolist(),
        "page_table_offset": PLAN_HEADER_DTYPE.fields["page_table"][1],  # type: ignore[index]
        "scratch_bytes": {
            "partial_o": max(4 * heads * layer.value_dim, 4),
            "partial_lse": max(4 * heads, 4),
            "counters": 4 * NUM_COUNTERS,
            "merge_counters": max(8 * plan.num_merges * plan.num_kv_heads, 4),
        },
        "params_bytes": params_dtype(variant).itemsize,
        "params": _params(variant, layer, tensors),
    }


def _options(source: KernelSource) -> list[str]:
    """Return the options that decide the code, and lines of the source for tools."""
    return [f"--gpu-architecture={source.arch}", *CODE_OPTIONS, "-lineinfo", *source.options]


def _params(variant: Variant, layer: AttentionSpec, tensors: RunTensors) -> list[list[Any]]:
    """Return offset, kind and value of every member of the kernel's parameter that is not null."""
    dtype, family = params_dtype(variant), family_of(variant)
    fixed = family.fixed_arguments(variant, layer, tensors, Buffers(0, 0, 0, 0, 0))
    maps = family.map_shapes(variant, layer, tensors)
    members: Mapping[str, Any] = dtype.fields or {}
    found: list[list[Any]] = []
    for name in dtype.names or ():
        member, offset = members[name][:2]
        if name in maps:
            tensor, shape = maps[name]
            if isinstance(shape, MapShape):
                found.append([offset, "map", tensor, *map(list, shape)])
            else:
                found.append([offset, "address", tensor])
                found += [[offset + at, "int", value] for at, value in shape.by_offset().items()]
        elif member == np.uint64:
            if name in _BUFFERS:
                found.append([offset, "address", _BUFFERS[name]])
        else:
            found.append([offset, _KINDS[member.kind], fixed[name]])
    return found


def _tensors(repro: Repro) -> tuple[RunTensors, npt.NDArray[np.int32] | None]:
    """Return how inputs and output lie, as C-contiguous arrays do, and the block table."""
    layer, lengths = repro.layer, repro.lengths
    kv_lens = [kv_len for _, kv_len in lengths]
    rng = np.random.default_rng(repro.seed)
    block_table = None
    if layer.page_size is None:
        places = contiguous_rows(kv_lens)
    else:
        block_table, num_pages = shuffled_pages(kv_lens, layer.page_size, rng)
        places = num_pages, layer.page_size
    rows = sum(q_len for q_len, _ in lengths)
    q_heads, kv_heads = (rows, layer.num_qo_heads), (*places, layer.num_kv_heads)
    q, k, v, out = (
        _view(name, shape, layer.dtype)
        for name, shape in (
            ("q", (*q_heads, layer.head_dim)),
            ("k_cache", (*kv_heads, layer.head_dim)),
            ("v_cache", (*kv_heads, layer.value_dim)),
            ("out", (*q_heads, layer.value_dim)),
        )
    )
    fields = {"lse": None, "out_tensor": None, "lse_tensor": None, "is_given": (True, True)}
    return RunTensors(q=q, k_cache=k, v_cache=v, out=out, **fields), block_table  # type: ignore[arg-type]


def _view(name: str, shape: tuple[int, ...], dtype: str) -> TensorView:
    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return TensorView(name, 0, shape, strides, dtype, 0, True, "cupy", None)


def _plan_bytes(plan: Plan) -> bytes:
    header = np.zeros(PLAN_HEADER_BYTES, np.uint8)
    write_plan_header(header, plan, 0, 0)
    plan_bytes = header.tobytes() + plan.prefill.tobytes() + plan.decode.tobytes()
    return plan_bytes.ljust(PLAN_BYTES_AT_LEAST, b"\0")


def _as_json(launch: Mapping[str, Any]) -> str:
    """Return JSON with a line for each entry, and for each of the members of the parameter."""
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in launch.items() if k != "params"]
    params = ",\n  ".join(json.dumps(each) for each in launch["params"])
    return "{" + ",\n".join([*lines, f'"params": [\n  {params}\n]']) + "}\n"


def _readme(repro: Repro) -> str:
    return render(
        f"{_FOLDER}/README.md.jinja",
        {
            "variant": repro.variant,
            "version": __version__,
            "batch": describe_lengths(repro.lengths),
            "heads": f"{repro.layer.num_qo_heads}/{repro.layer.num_kv_heads}",
            "gpu": f"{repro.gpu.num_sms} SMs ({repro.gpu.name})",
            "policy": repro.alone.policy,
            "tolerance": tolerance_of(repro.layer.dtype),
        },
    )
