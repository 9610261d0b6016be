"""Variants against float64 on batches at the edges of their tiles, before anybody ranks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from podrt.bench.case import Case
from podrt.bench.gpu_error import require_gpu
from podrt.bench.peers import error_text
from podrt.bench.planned import planned_attention
from podrt.bench.tensors import CaseTensors, fetch, free_memory, make_tensors
from podrt.explore.alone import alone, edge_lengths, layer_for
from podrt.gpu.device import DeviceInfo, load_cupy
from podrt.kernels.families import Variant
from podrt.policy.policies import Policy
from podrt.workloads.accuracy import (
    LSE_TOLERANCE,
    Expected,
    Window,
    tolerance_of,
)
from podrt.workloads.lengths import batch_of_lengths

#: Query and KV heads of the layers: a group of 1, of 4, and one that divides no tile.
#: An even number of KV heads, which some variants take in pairs.
HEADS = ((2, 2), (8, 2), (12, 2))

Status = Literal["right", "wrong", "failed"]


class Subject(NamedTuple):
    """What is to be checked.

    Attributes
    ----------
    name : str
    variant : Variant
        The kernel, whose tiles say which batches are at their edges.
    policy : Policy or None
        Under which it runs; None finds one for a default variant.
    """

    name: str
    variant: Variant
    policy: Policy | None = None


@dataclass(frozen=True)
class Check:
    """What became of one subject.

    Attributes
    ----------
    name : str
        Its name.
    status : {"right", "wrong", "failed"}
    max_rel_err, tolerance : float or None
        Largest error of an output over the largest value of its row, and what is allowed; NaN
        where an output is NaN.
    lse_error : float or None
        Largest error of the LSE, of which `LSE_TOLERANCE` is allowed.
    where : str or None
        Heads, batch and place of the largest error of an output.
    rows : int
        Rows that were compared.
    reason : str or None
        Why it is not right.
    """

    name: str
    status: Status
    max_rel_err: float | None = None
    tolerance: float | None = None
    lse_error: float | None = None
    where: str | None = None
    rows: int = 0
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON, in which NaN is null."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


def check_all(
    subjects: Sequence[Subject],
    gpu: DeviceInfo,
    on_check: Callable[[Check], None] = lambda check: None,
) -> list[Check]:
    """Check variants on the current GPU, each on one batch for each of `HEADS`.

    Parameters
    ----------
    subjects : sequence of Subject
    gpu : DeviceInfo
        The current GPU.
    on_check : callable
        Called with each `Check`.

    Raises
    ------
    ValueError
        A variant is of another architecture.
    DeviceError
        The GPU stopped working; names the variant.
    """
    for variant in (subject.variant for subject in subjects):
        if variant.arch != gpu.arch.name:
            raise ValueError(
                f"{variant.name}: is compiled for {variant.arch}, {gpu.name} is {gpu.arch.name}"
            )
    checks = []
    for subject in subjects:
        checks.append(_check(subject, gpu))
        on_check(checks[-1])
        require_gpu(f"after {subject.name}", "go on in a new process")
    return checks


def edge_case(variant: Variant, heads: tuple[int, int]) -> Case:
    """Return the batch that a variant is checked on with some query and KV heads."""
    qo, kv = heads
    return Case.of(edge_lengths(variant, qo // kv), layer_for(variant, qo, kv))


def _check(subject: Subject, gpu: DeviceInfo) -> Check:
    found: list[Check] = []
    for heads in HEADS:
        try:
            found.append(_check_layer(subject, heads, gpu))
        except Exception as error:  # a compiler's refusal, no memory, a launch that failed
            return Check(subject.name, "failed", reason=error_text(error))
    worst = max(found, key=lambda each: _order(each.max_rel_err))
    off = [each.reason for each in found if each.reason]
    return replace(
        worst,
        status="wrong" if off else "right",
        lse_error=max((each.lse_error for each in found), key=_order),
        rows=sum(each.rows for each in found),
        reason="; ".join(off) or None,
    )


def _check_layer(subject: Subject, heads: tuple[int, int], gpu: DeviceInfo) -> Check:
    name, variant, policy = subject
    case = edge_case(variant, heads)
    if policy is None:
        batch = batch_of_lengths(case.lengths, case.page_size)
        policy = alone(variant, layer_for(variant, *heads), batch, gpu).policy
    with _on_gpu(case) as (tensors, expected):
        out, lse = _run(tensors, policy)
    worst = expected.worst_of(out)
    lse_error, allowed = expected.lse_error_of(lse), tolerance_of(case.dtype)
    layer = "heads {}/{}".format(*heads)
    where = f"{layer}, {worst}, of {case.name}"
    wrong = []
    if not worst.error <= allowed:  # NaN too
        wrong.append(f"error {worst.error:.2g} > {allowed:.2g}, {layer}, {worst}")
    if not lse_error <= LSE_TOLERANCE:
        wrong.append(f"LSE off by {lse_error:.2g} > {LSE_TOLERANCE:.2g}, {layer}")
    return Check(
        name,
        "wrong" if wrong else "right",
        worst.error,
        allowed,
        lse_error,
        where,
        len(expected.rows),
        "; ".join(wrong) or None,
    )


#: What the last cases need, by case: many variants share one.
_known: dict[Case, tuple[CaseTensors, Expected]] = {}
_MOST_KNOWN = 8


@contextmanager
def _on_gpu(case: Case) -> Iterator[tuple[CaseTensors, Expected]]:
    with load_cupy().cuda.Stream(non_blocking=True) as stream:
        if case not in _known:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
                free_memory()
            tensors = make_tensors(case)
            windows = [Window(i, 0, q_len) for i, (q_len, _) in enumerate(case.lengths)]
            _known[case] = tensors, tensors.expected(windows)
            stream.synchronize()
        yield _known[case]


def _run(tensors: CaseTensors, policy: Policy) -> tuple[Any, Any]:
    """Run a case and return output and LSE on the host; rows that nobody writes are NaN."""
    cupy, case = load_cupy(), tensors.case
    kv_lens = np.array(case.kv_lens, np.int32)
    attention = planned_attention(
        case.spec(),
        policy,
        case.qo_indptr,
        kv_lens,
        tensors.block_table,
        tree_mask=tensors.tree_mask,
    )
    lse = cupy.full(tensors.q.shape[:2], np.nan, "float32")
    tensors.poison()
    attention.run(tensors.q, tensors.k_cache, tensors.v_cache, out=tensors.out, lse=lse)
    return fetch(tensors.out, np.arange(len(lse))), lse.get()


def _order(error: float | None) -> float:
    """Order errors, NaN as the largest."""
    return float("inf") if error is None or error != error else error
