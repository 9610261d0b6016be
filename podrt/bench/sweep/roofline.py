"""The measured variants of a sweep against what the GPU's arithmetic and memory reach."""

from __future__ import annotations

from podrt.bench.roofline import RooflinePoint, point_of, require_measured
from podrt.bench.sweep.records import Sweep
from podrt.bench.sweep.summary import summarise


def roofline(sweep: Sweep, variants: list[str] | None = None) -> list[RooflinePoint]:
    """Return the point of every variant on every case, the fastest of a case first.

    Parameters
    ----------
    sweep : Sweep
    variants : list of str, optional
        Names of those that are wanted; all that compute whole cases if None.

    Raises
    ------
    ValueError
        The sweep has no ceilings, or not one of the variants; names the nearest.
    """
    known = list(dict.fromkeys(each.variant for each in sweep.results if each.status == "ok"))
    require_measured("variant", variants or (), known)
    if not known:
        raise ValueError("sweep: has no results; measure some with podrt explore sweep")
    points = []
    for gpu in sweep.gpus:
        own = sweep.on(gpu)
        ceilings = own.environment.get("ceilings") or {}
        if not (ceilings.get("matmul_tflops") and ceilings.get("read_gbs")):
            raise ValueError(f"sweep on {gpu}: has no ceilings; measure it again")
        for case in summarise(own):
            points += [
                point_of(case.case, each.variant, each.time_us, case.sides_us, ceilings)
                for each in case.ranked
                if each.time_us is not None and (variants is None or each.variant in variants)
            ]
    return points
