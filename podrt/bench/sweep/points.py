"""The points of a sweep: a variant on a case, what it launches, and the key of its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from podrt.bench.case import Case
from podrt.bench.sweep.axes import Combination
from podrt.bench.sweep.definition import Definition
from podrt.bench.sweep.records import (
    AUTO,
    DECODE_ALONE,
    PREFILL_ALONE,
    SERIAL,
    Result,
    Side,
    Skip,
    Status,
)
from podrt.gpu.device import DeviceInfo
from podrt.gpu.driver_version import driver_version
from podrt.jit import cache_key
from podrt.kernels.families import Variant, source_of
from podrt.policy.schedule import Schedule, Scheduler
from podrt.workloads.lengths import batch_of_lengths, describe_lengths

#: Part of every key: another way of checking or timing is another number.
_METHOD = "ends against float64; graphs, turns, cold L2; 1"

_BASELINES: tuple[tuple[str, Combination, Side], ...] = (
    (AUTO, Combination(()), "both"),
    (SERIAL, Combination((("serial", True),)), "both"),
    (PREFILL_ALONE, Combination(()), "prefill"),
    (DECODE_ALONE, Combination(()), "decode"),
)


@dataclass(frozen=True, eq=False)
class Point:
    """One variant on one case.

    Attributes
    ----------
    name : str
        Of the variant.
    combination : Combination
        What is fixed.
    side : {"both", "prefill", "decode"}
        What of the case is run.
    case : Case
    variants : tuple of Variant
        The kernels.
    shares : dict
        As of `Result`.
    predicted_us : float or None
    key : str
        Of the result.
    """

    name: str
    combination: Combination
    side: Side
    case: Case
    variants: tuple[Variant, ...]
    shares: dict[str, int]
    predicted_us: float | None
    key: str

    @property
    def requests(self) -> slice:
        """The requests of the case that are run."""
        prefills, total = len(self.case.prefill), len(self.case.lengths)
        begin = prefills if self.side == "decode" else 0
        return slice(begin, prefills if self.side == "prefill" else total)

    def result(self, environment: str, status: Status, **measured: Any) -> Result:
        """Return a result of the point."""
        case = self.case
        return Result(
            key=self.key,
            variant=self.name,
            policy=self.combination.to_dict(),
            side=self.side,
            case=case.name,
            lengths=describe_lengths(case.lengths),
            layer=layer_fields(case),
            environment=environment,
            kernels=[variant.name for variant in self.variants],
            shares=self.shares,
            status=status,
            predicted_us=self.predicted_us,
            **measured,
        )


def layer_fields(case: Case) -> dict[str, Any]:
    """Return the layer of a case, as of `Result`; of a plain one without what it has not."""
    names = ["num_qo_heads", "num_kv_heads", "head_dim", "dtype", "page_size"]
    if not case.is_plain:
        names += ["window_left", "logits_soft_cap", "sinks"]
    if case.v_head_dim is not None:
        names.append("v_head_dim")
    return {name: getattr(case, name) for name in names}


def points_of(definition: Definition, gpu: DeviceInfo) -> tuple[list[Point], list[Skip]]:
    """Return what a definition measures on a GPU, case by case, and what it leaves out.

    Points that would be the same result are one. Needs NVRTC for the keys, and no GPU.
    A case of one side has the automatic choice as its only baseline.
    """
    points: list[Point] = []
    skips = [
        Skip(each.combination.name, each.combination.to_dict(), None, each.reason)
        for each in definition.skipped
    ]
    for case in definition.cases:
        for name, combination, side in _named(definition.combinations, case):
            try:
                points.append(_point(name, combination, side, case, gpu, definition.samples))
            except (ValueError, TypeError) as error:
                skips.append(Skip(name, combination.to_dict(), case.name, str(error)))
    return _once(points), _everywhere(skips, definition.cases)


def _named(
    combinations: Sequence[Combination], case: Case
) -> Iterator[tuple[str, Combination, Side]]:
    yield from _BASELINES if case.is_hybrid else _BASELINES[:1]
    for combination in combinations:
        yield combination.name, combination, "both"


def _point(
    name: str, combination: Combination, side: Side, case: Case, gpu: DeviceInfo, samples: int
) -> Point:
    scheduler = _scheduler(case.spec(), gpu, combination)
    lengths = {"both": case.lengths, "prefill": case.prefill}.get(
        side, tuple((1, kv_len) for kv_len in case.decode)
    )
    schedule = scheduler.schedule(batch_of_lengths(lengths, case.page_size))
    predictions = scheduler.predict(schedule)
    plan = schedule.plan
    return Point(
        name,
        combination,
        side,
        case,
        schedule.variants,
        {
            "decode_only_sms": plan.decode_only_ctas,
            "prefill_only_sms": plan.prefill_only_ctas,
            "prefill_share": plan.prefill_share,
            "decode_share": plan.decode_share,
        },
        round(sum(each.time_us for each in predictions), 2) if predictions else None,
        _key(combination, side, case, schedule, gpu, samples),
    )


def _key(
    combination: Combination,
    side: Side,
    case: Case,
    schedule: Schedule,
    gpu: DeviceInfo,
    samples: int,
) -> str:
    """Return the digest of what decides a result: a change of kernels or of the planner shows."""
    parts = (
        combination.to_dict(),
        side,
        case.lengths,
        layer_fields(case),
        [kernel_key(variant) for variant in schedule.variants],
        _plan_digest(schedule),
        (gpu.name, gpu.num_sms, driver_version()),
        (_METHOD, samples),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _plan_digest(schedule: Schedule) -> str:
    plan = schedule.plan
    others = plan._asdict()
    for name in ("prefill", "decode", "spec"):
        del others[name]
    digest = hashlib.sha256(repr(others).encode())
    for items in (plan.prefill, plan.decode):
        digest.update(items.tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def kernel_key(variant: Variant) -> str:
    """Return the cache key of a variant's kernel."""
    return cache_key(source_of(variant))


@lru_cache(maxsize=1024)
def _scheduler(spec: Any, gpu: DeviceInfo, combination: Combination) -> Scheduler:
    return Scheduler(spec, gpu, combination.policy())


def _once(points: Sequence[Point]) -> list[Point]:
    """Return points of which no two are the same, such as a combination that is a baseline."""
    found: dict[tuple[str, str], Point] = {}
    for point in points:
        found.setdefault((point.case.name, point.key), point)
    return list(found.values())


def _everywhere(skips: Sequence[Skip], cases: Sequence[Case]) -> list[Skip]:
    """Return skips, those with the same reason on every case as one."""
    found: dict[tuple[str, str], list[Skip]] = {}
    for skip in skips:
        found.setdefault((skip.variant, skip.reason), []).append(skip)
    result: list[Skip] = []
    for same in found.values():
        first = same[0]
        if len(same) == len(cases) > 1:
            result.append(Skip(first.variant, first.policy, None, first.reason))
        else:
            result += same
    return result
