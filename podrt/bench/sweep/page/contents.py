"""What the page of a sweep shows, as plain data: all records, and the views made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from podrt._version import __version__
from podrt.bench.sweep.heatmap import DRAWN_AXES, heat_maps
from podrt.bench.sweep.records import Result, Sweep
from podrt.bench.sweep.roofline import roofline
from podrt.bench.sweep.summary import CaseSummary, summarise, variant_summaries
from podrt.errors import PodrtError
from podrt.gpu.device import DeviceInfo
from podrt.gpu.nominal import GPUS
from podrt.policy.explain import explain
from podrt.policy.policies import Policy
from podrt.policy.schedule import Scheduler
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.workloads.lengths import batch_of_lengths, parse_lengths


def contents_of(sweep: Sweep) -> dict[str, Any]:
    """Return what the page shows of a sweep, but for code and timeline; all of it fit for JSON.

    Raises
    ------
    ValueError
        The sweep has no results.
    """
    if not sweep.results:
        raise ValueError("sweep: has no results to report; measure some with podrt explore sweep")
    return {
        "podrt": __version__,
        "environments": dict(sweep.environments),
        "skips": [asdict(skip) for skip in sweep.skips],
        "gpus": [_of_gpu(sweep.on(gpu), gpu) for gpu in sweep.gpus],
    }


def planned_gpu(name: str) -> DeviceInfo | None:
    """Return the GPU of a name, to plan for; None where podrt has no data sheet of it."""
    return next((gpu for gpu in GPUS.values() if gpu.name == name), None)


def layer_of(result: Result) -> AttentionSpec:
    """Return the layer that a result is of."""
    layer: Mapping[str, Any] = result.layer
    return make_spec(
        layer["num_qo_heads"],
        layer["num_kv_heads"],
        layer["head_dim"],
        layer["page_size"],
        "NHD",
        layer["dtype"],
        v_head_dim=layer.get("v_head_dim"),
    )


def _of_gpu(sweep: Sweep, gpu: str) -> dict[str, Any]:
    cases = summarise(sweep)
    return {
        "gpu": gpu,
        "results": [
            _result(case, each, place) for place, case in enumerate(cases) for each in case.results
        ],
        "variants": [
            {name: _finite(value) for name, value in row._asdict().items()}
            for row in variant_summaries(cases)
        ],
        "maps": [each.to_dict() for each in heat_maps(cases, gpu, DRAWN_AXES)],
        "plans": [_explained(case, gpu) for case in cases],
        **_roofline(sweep),
    }


def _result(case: CaseSummary, result: Result, place: int) -> dict[str, Any]:
    """Return a record with what follows from it and its neighbours, and the place of its plan."""
    return {
        **asdict(result),
        "relative": result.relative,
        "regret": case.regret_of(result) if result.side == "both" else None,
        "overlap": case.overlap_of(result),
        "is_best": result is case.best,
        "plan": place,
    }


def _explained(case: CaseSummary, gpu: str) -> dict[str, Any]:
    """Return how podrt plans a batch by itself now, or why that cannot be said."""
    device = planned_gpu(gpu)
    if device is None:
        return {"why_not": f"podrt has no data sheet of {gpu} to plan for"}
    first = case.results[0]
    layer = layer_of(first)
    batch = batch_of_lengths(parse_lengths(first.lengths), layer.page_size)
    try:
        return explain(Scheduler(layer, device, Policy()), batch).to_dict()
    except (PodrtError, ValueError) as error:
        return {"why_not": str(error)}


def _roofline(sweep: Sweep) -> dict[str, Any]:
    try:
        return {"roofline": [point.to_dict() for point in roofline(sweep)]}
    except ValueError as error:  # no ceilings, or nothing that is right
        return {"roofline": [], "no_roofline": str(error)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
