"""One batch on the GPU: fused against serial, checked and timed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from podrt.bench.planned import planned_attention
from podrt.bench.timing import median_times_us
from podrt.gpu.device import load_cupy
from podrt.policy.policies import parse_policy
from podrt.workloads.accuracy import LSE_TOLERANCE, tolerance_of
from podrt.workloads.random_batch import Geometry, Workload


@dataclass(frozen=True)
class Outcome:
    """What one batch gave. Errors are the larger ones of fused and serial.

    Attributes
    ----------
    prefills, decodes, tokens : int
        Requests of each kind, and query rows of all.
    family : str
        Kernel family that ran, fused and serial.
    variants : tuple of str
        Names of the fused launch's variants.
    fused_us, serial_us : float
        Median times.
    error : float
        Largest error of the output relative to the largest value of its row.
    lse_error : float
        Largest absolute error of the LSE.
    checked_rows : int
        Query rows that were compared with the reference.
    ok : bool
        Both errors are within tolerance.
    """

    prefills: int
    decodes: int
    tokens: int
    family: str
    variants: tuple[str, ...]
    fused_us: float
    serial_us: float
    error: float
    lse_error: float
    checked_rows: int
    ok: bool

    @property
    def speedup(self) -> float:
        """Serial time over fused time."""
        return self.serial_us / self.fused_us


def baseline_of(policy: str) -> str:
    """Return the serial policy of the same family, which a fused policy is timed against.

    Raises
    ------
    ValueError
        The policy is unknown, or serial itself.
    """
    parsed = parse_policy(policy)
    if parsed.serial:
        raise ValueError(
            f"policy={policy!r}: is the baseline; choose a fused one to be timed against it, such "
            'as "auto", "hopper", "portable" or a ratio "P:D"'
        )
    return "portable-serial" if parsed.family == "portable" else "serial"


def compete(workload: Workload, geometry: Geometry, policy: str) -> Outcome:
    """Run a batch fused and serial (two launches); compare both with the reference, and time."""
    cupy = load_cupy()
    spec, batch = geometry.spec(), workload.batch
    attentions = [
        planned_attention(spec, each, batch.qo_indptr, batch.kv_lens, workload.block_table)
        for each in (policy, baseline_of(policy))
    ]
    tensors = [cupy.asarray(array) for array in (workload.q, workload.k_cache, workload.v_cache)]
    expected = workload.expected()
    launches, errors, lse_errors = [], [], []
    for attention in attentions:
        out, lse = attention.run(*tensors, return_lse=True)
        errors.append(expected.error_of(out.get()[expected.rows]))
        lse_errors.append(expected.lse_error_of(lse.get()[expected.rows]))
        launches.append(partial(attention.run, *tensors, out=out, lse=lse, return_lse=True))
    # NumPy's max keeps a NaN, and comparing with NaN is false: NaN is never within tolerance.
    error, lse_error = float(np.max(errors)), float(np.max(lse_errors))
    fused_us, serial_us = median_times_us(launches)
    return Outcome(
        prefills=workload.step.num_prefills,
        decodes=workload.step.num_decodes,
        tokens=workload.step.total_tokens,
        family=attentions[0].variants[0].family,
        variants=tuple(config.name for config in attentions[0].variants),
        fused_us=fused_us,
        serial_us=serial_us,
        error=error,
        lse_error=lse_error,
        checked_rows=len(expected.rows),
        ok=error <= tolerance_of(geometry.dtype) and lse_error <= LSE_TOLERANCE,
    )
