"""Decodes that share a prefix, on their own and beside a chunk: ``python -m podrt.bench.prefixes``.

The same requests with pages of their own, over shared pages, and with the shared keys read once, by
podrt and by FlashInfer's cascade where that is installed.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from podrt.attention import HybridAttention
from podrt.bench.case import Case
from podrt.bench.environment import describe, gpu_slug
from podrt.bench.peer_flashinfer import cascade
from podrt.bench.peers import installed_peers, make_works
from podrt.bench.planned import planned_attention
from podrt.bench.results import write_whole
from podrt.bench.tensors import CaseTensors, fetch, free_memory, make_tensors
from podrt.bench.timing import Timing, Work, capture_graph, time_all
from podrt.gpu.device import current_device, load_cupy
from podrt.spec.attention import make_spec
from podrt.workloads.accuracy import Window, tolerance_of

LAYER = (32, 8, 128)
PAGE_SIZE = 16
CASES = (
    "64x16384/17000",
    "64x4096/4400",
    "16x16384/17000",
    "128x2048/2300",
    "256x1024/1400",
    "8x32768/34000",
    "64x16384/17000+1024@8192",
)
_CASE = re.compile(r"(\d+)x(\d+)/(\d+)(?:\+(\d+)@(\d+))?")
#: What an H100, of a nominal 3.35 TB/s, reads at best.
_READ_GBS = 3050


class SharedCase(NamedTuple):
    """Decodes that share their first keys.

    Attributes
    ----------
    requests, shared_keys, kv_len : int
        How many, and the keys of each, of which the first are shared.
    chunk : (int, int) or None
        Query tokens and keys of a prefill beside them.
    """

    requests: int
    shared_keys: int
    kv_len: int
    chunk: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> SharedCase:
        """Read ``64x16384/17000``, or the same with ``+1024@8192`` behind it."""
        found = _CASE.fullmatch(text)
        if found is None:
            raise ValueError(
                f"case={text!r}: expected requests x shared keys / keys, as 64x16384/17000, and "
                "+tokens@keys of a prefill if there is one"
            )
        requests, shared, keys, *chunk = (int(each) if each else None for each in found.groups())
        assert requests is not None and shared is not None and keys is not None
        if not 0 < shared < keys or shared % PAGE_SIZE or requests < 2:
            raise ValueError(
                f"case={text!r}: needs two requests or more, and shared keys that are whole pages "
                f"of {PAGE_SIZE}, fewer than all"
            )
        tokens, tokens_keys = chunk
        return cls(
            requests, shared, keys, (tokens, tokens_keys) if tokens and tokens_keys else None
        )

    def case(self, name: str) -> Case:
        """Return the batch."""
        layer = make_spec(*LAYER, PAGE_SIZE, "NHD", "bfloat16", True, None)
        chunk = [self.chunk] if self.chunk else []
        return Case.of([*chunk, *[(1, self.kv_len)] * self.requests], layer, name=name)

    @property
    def prefix(self) -> tuple[int, int, int]:
        """The prefix as `HybridAttention.plan` takes it: the decodes are behind the chunk."""
        first = int(self.chunk is not None)
        return first, first + self.requests, self.shared_keys

    @property
    def floor_us(self) -> float:
        """Time that reading each key of the decodes once takes."""
        _, kv_heads, head_dim = LAYER
        keys = self.shared_keys + self.requests * (self.kv_len - self.shared_keys)
        return keys * kv_heads * head_dim * 2 * 2 / _READ_GBS / 1e3


def measure(text: str, peers: Sequence[str]) -> dict[str, Any]:
    """Return a row of results for one case; checks podrt against float64 first.

    Raises
    ------
    ValueError
        The case makes no sense.
    AssertionError
        A result is off by more than rounding.
    """
    shared = SharedCase.parse(text)
    tensors = make_tensors(shared.case(text))
    assert tensors.block_table is not None
    begin, end, keys = shared.prefix
    table = tensors.block_table.copy()
    table[begin:end, : keys // PAGE_SIZE] = table[begin, : keys // PAGE_SIZE]
    sharing = replace(tensors, block_table=table)
    attentions = {
        "own pages": _planned(tensors),
        "shared pages": _planned(sharing),
        "podrt": _planned(sharing, shared_prefixes="find"),
        "podrt serial": _planned(sharing, policy="hopper-serial", shared_prefixes="find"),
    }
    error = _largest_error(sharing, attentions["podrt"])
    works = {
        name: Work(partial(_run, attention, tensors), capture_graph)
        for name, attention in attentions.items()
    }
    errors: dict[str, str] = {}
    if "flashinfer" in peers and shared.chunk is None:
        made, errors = make_works("flashinfer", {"cascade": partial(cascade, sharing, keys)})
        works |= made
    times = dict(zip(works, time_all(list(works.values())), strict=True))
    timings = {name: each for name, each in times.items() if isinstance(each, Timing)}
    errors |= {name: str(each) for name, each in times.items() if not isinstance(each, Timing)}
    return {
        "case": text,
        "heads": "{}/{} d{}".format(*LAYER),
        "floor_us": round(shared.floor_us, 1),
        "shared_prefixes": [list(each) for each in attentions["podrt"].shared_prefixes],
        "median_us": {name: round(each.median_us, 1) for name, each in timings.items()},
        "samples_us": {
            name: [round(us, 1) for us in each.samples_us] for name, each in timings.items()
        },
        "errors": errors,
        "max_rel_err": error,
    }


def _planned(tensors: CaseTensors, policy: str = "auto", **given: Any) -> HybridAttention:
    case, kv_lens = tensors.case, np.array(tensors.case.kv_lens, np.int32)
    table = tensors.block_table
    return planned_attention(case.spec(), policy, case.qo_indptr, kv_lens, table, **given)


def _run(attention: HybridAttention, tensors: CaseTensors) -> None:
    attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out)


def _largest_error(tensors: CaseTensors, attention: HybridAttention) -> float:
    """Return how far results are off, of the first, middle and last decode."""
    tensors.poison()
    _run(attention, tensors)
    requests = len(tensors.case.lengths)
    decodes = requests - len(tensors.case.decode)
    windows = [Window(i, 0, 1) for i in sorted({decodes, (decodes + requests) // 2, requests - 1})]
    expected = tensors.expected(windows)
    worst = expected.error_of(fetch(tensors.out, expected.rows))
    if not worst <= tolerance_of(tensors.case.dtype):
        raise AssertionError(f"{tensors.case.name}: results are off by {worst:.2e}")
    return worst


def main(
    case: Annotated[
        list[str] | None,
        typer.Option(help="requests x shared keys / keys, +tokens@keys of a prefill; repeatable."),
    ] = None,
    peers: Annotated[bool, typer.Option(help="FlashInfer's cascade too, if installed.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="JSON file. Default: bench/results/GPU/prefixes.json.")
    ] = None,
) -> None:
    """Time decodes that share a prefix; results are saved after every case."""
    device = current_device()
    path = out or Path("bench/results") / gpu_slug(device.name) / "prefixes.json"
    names = [name for name in installed_peers() if name == "flashinfer" and peers]
    environment = describe(device, names)
    environment["command"] = shlex.join(["python", "-m", "podrt.bench.prefixes", *sys.argv[1:]])
    rows: list[dict[str, Any]] = []
    for text in case or CASES:
        with load_cupy().cuda.Stream(non_blocking=True):
            rows.append(measure(text, names))
        free_memory()
        write_whole(json.dumps({"environment": environment, "rows": rows}, indent=1), path)
        times = "  ".join(f"{name} {us:.1f}" for name, us in rows[-1]["median_us"].items())
        typer.echo(f"{text:28} floor {rows[-1]['floor_us']:.1f}  {times}")


if __name__ == "__main__":
    typer.run(main)
