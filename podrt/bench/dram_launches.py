"""The process that `podrt.bench.dram` has counted: launches each contender of each case once.

    python -m podrt.bench.dram_launches CASES.json

Each contender runs once before, uncounted, so that its kernels are compiled and its memory is
there. A JSON line for each goes to the output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from podrt.bench.case import Case
from podrt.bench.contenders import make_contender
from podrt.bench.dram import contenders_of
from podrt.bench.tensors import free_memory, make_tensors
from podrt.gpu.device import load_cupy


def main(path: Path) -> None:
    """Launch all contenders of the cases in a file."""
    profiler = load_cupy().cuda.profiler
    stream = load_cupy().cuda.Stream(non_blocking=True)
    with stream:
        for case in map(_case_of, json.loads(path.read_text(encoding="utf-8"))):
            free_memory()
            tensors = make_tensors(case)
            for name in contenders_of(case):
                contender = make_contender(name, tensors)
                contender.enqueue()
                stream.synchronize()
                profiler.start()
                contender.enqueue()
                stream.synchronize()
                profiler.stop()
                variants = contender.variant.split(", ")
                line = {"case": case.name, "contender": name, "variants": variants}
                print(json.dumps(line), flush=True)
            del tensors, contender


def _case_of(fields: dict[str, Any]) -> Case:
    """Return the case that was written as JSON, whose tuples are lists there."""
    prefill = tuple((q_len, kv_len) for q_len, kv_len in fields["prefill"])
    decode, policies = tuple(fields["decode"]), tuple(fields["policies"])
    return Case(**{**fields, "prefill": prefill, "decode": decode, "policies": policies})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
