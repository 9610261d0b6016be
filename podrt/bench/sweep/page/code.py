"""Source and SASS of the kernels that won most batches of a sweep."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from podrt.bench.sweep.page.contents import layer_of, planned_gpu
from podrt.bench.sweep.records import AUTO, Result, Sweep
from podrt.bench.sweep.summary import summarise
from podrt.errors import PodrtError
from podrt.explore.listing import What, text_of
from podrt.explore.repro import flat_source
from podrt.kernels.families import Variant, source_of
from podrt.policy.schedule import Scheduler
from podrt.workloads.lengths import batch_of_lengths, parse_lengths

#: Kernels whose code a page holds.
MAX_KERNELS = 4


@dataclass(frozen=True)
class KernelCode:
    """The texts of one kernel, each compressed (`packed`), or why there is none.

    Attributes
    ----------
    name : str
    source, sass : str or None
    why_not : str or None
        Why there is no SASS, or neither.
    """

    name: str
    source: str | None = None
    sass: str | None = None
    why_not: str | None = None


def codes_of(sweep: Sweep, *, with_sass: bool = True) -> list[KernelCode]:
    """Return the code of the `MAX_KERNELS` kernels that won most, with those podrt chose itself.

    The source is what this podrt renders: that of the sweep's own version may be another.

    Parameters
    ----------
    sweep : Sweep
    with_sass : bool
        Compile them, and disassemble what comes out.
    """
    wins: Counter[str] = Counter()
    where: dict[str, tuple[Result, str]] = {}
    for gpu in sweep.gpus:
        for case in summarise(sweep.on(gpu)):
            for result in case.ranked:
                for name in result.kernels:
                    where.setdefault(name, (result, gpu))
                    wins[name] += 2 * (result is case.best) + (result.variant == AUTO)
    chosen = [name for name, count in wins.most_common(MAX_KERNELS) if count]
    return [_code(name, *where[name], with_sass=with_sass) for name in chosen]


def packed(text: str) -> str:
    """Return a text as base64 of gzip, without the time of day in it."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _code(name: str, result: Result, gpu: str, *, with_sass: bool) -> KernelCode:
    variant = next((each for each in _variants(result, gpu) if each.name == name), None)
    if variant is None:
        return KernelCode(name, why_not=f"podrt does not run {result.case} on it any more")
    source = packed(flat_source(source_of(variant)))
    if not with_sass:
        return KernelCode(name, source, why_not="no SASS was asked for")
    try:
        return KernelCode(name, source, packed(text_of(variant, What.sass)))
    except PodrtError as error:
        return KernelCode(name, source, why_not=f"no SASS: {error}")


def _variants(result: Result, gpu: str) -> Iterator[Variant]:
    """Yield the kernels by which podrt runs a result's batch under its policy now."""
    device = planned_gpu(gpu)
    if device is None:
        return
    layer = layer_of(result)
    lengths = batch_of_lengths(parse_lengths(result.lengths), layer.page_size)
    try:
        scheduler = Scheduler(layer, device, result.combination.policy())
        yield from scheduler.schedule(lengths).variants
    except (PodrtError, ValueError):
        return
