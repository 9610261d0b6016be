"""`explain`: what a batch's launches are predicted to take, done one way or another, and why one.

The choice is made by the rules of `podrt.policy.hopper` and `podrt.policy.sm_allocation`, or by
measurements (`podrt.policy.winners`); what is predicted here changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from podrt.plan import Plan
from podrt.policy.calibration import Record, record_of
from podrt.policy.candidates import as_candidate, candidate_names
from podrt.policy.cost import Prediction
from podrt.policy.schedule import Schedule, Scheduler
from podrt.spec.batch import HybridBatch


@dataclass(frozen=True)
class Candidate:
    """One way to run a batch.

    Attributes
    ----------
    name : str
        The policy that fixes it, such as ``"decode-only=24"`` or ``"serial"``; for a batch of one
        kind ``"prefill alone"`` or ``"decode alone"``.
    launches : int
        Launches.
    predicted_us : float or None
        Predicted time; None where there is no prediction.
    limit : {"prefill", "decode", "bus"} or None
        What the longest launch waits for: SMs with prefill, SMs with decode, or memory.
    is_chosen : bool
        The batch is run like that.
    """

    name: str
    launches: int
    predicted_us: float | None
    limit: str | None
    is_chosen: bool


@dataclass(frozen=True)
class Explanation:
    """How a batch is run, and what it would take otherwise; `str` of it is a table.

    Attributes
    ----------
    gpu : str
        The GPU that it is planned for.
    record : str or None
        The GPU whose measurements the prediction is from; None without one.
    record_kind : {"tuned", "shipped", "likest"} or None
        Where that record is from: `podrt.policy.calibration.Record`.
    batch : str
        Its work in short.
    candidates : tuple of Candidate
        The fastest first, by prediction.
    prefill_us, decode_us : float or None
        What each side is predicted to take in a launch of its own.
    chosen_by : {"rule", "measurement"}
        What chose.
    why : str
        The rule, or the measurement.
    note : str
        What to keep in mind of the prediction, or why there is none.
    """

    gpu: str
    record: str | None
    record_kind: str | None
    batch: str
    candidates: tuple[Candidate, ...]
    prefill_us: float | None
    decode_us: float | None
    chosen_by: str
    why: str
    note: str

    @property
    def choice(self) -> Candidate | None:
        """What is run; None for a batch without work."""
        return next((each for each in self.candidates if each.is_chosen), None)

    @property
    def best(self) -> Candidate | None:
        """What is predicted to be the fastest; None without a prediction."""
        first = self.candidates[0] if self.candidates else None
        return None if first is None or first.predicted_us is None else first

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        chosen, best = self.choice, self.best
        return {
            **asdict(self),
            "candidates": [asdict(each) for each in self.candidates],
            "choice": chosen.name if chosen else None,
            "predicted_best": best.name if best else None,
        }

    def __str__(self) -> str:
        """Return a table to be read."""
        lines = [f"{self.batch}, on an {self.gpu}"]
        if self.best is not None:
            lines += ["", f"  {'candidate':<18}{'launches':>8}{'predicted us':>14}  waits for"]
            lines += [_row(each) for each in self.candidates]
            lines += ["  * is what runs", ""]
        lines.append(self.verdict())
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return the choice, its reason and what the prediction says of it, in a few lines."""
        chosen, best = self.choice, self.best
        if chosen is None:
            return "nothing to run"
        line = f"chosen by {self.chosen_by}: {chosen.name}"
        if best is not None:
            line += f"; predicted best: {best.name}, {best.predicted_us:.0f} us"
        lines = [line, f"the {self.chosen_by}: {self.why}"]
        if self.prefill_us is not None and self.decode_us is not None:
            sides = f"prefill {self.prefill_us:.0f} us, decode {self.decode_us:.0f} us"
            lines.append(f"predicted in launches of their own: {sides}")
        return "\n".join([*lines, self.note])


def _row(candidate: Candidate) -> str:
    mark = "*" if candidate.is_chosen else " "
    return (
        f"{mark} {candidate.name:<18}{candidate.launches:>8}"
        f"{candidate.predicted_us:>14.1f}  {candidate.limit}"
    )


def explain(
    scheduler: Scheduler, batch: HybridBatch, *, decode_rows: int | None = None
) -> Explanation:
    """Explain how a scheduler runs a batch.

    Parameters
    ----------
    scheduler : Scheduler
        Of the layer, the GPU and the policy.
    batch : HybridBatch
        Lengths and page geometry.
    decode_rows : int, optional
        As of `Scheduler.schedule`.
    """
    chosen = scheduler.schedule(batch, decode_rows=decode_rows)
    predictions = scheduler.predict(chosen)
    candidates = {_name(chosen): _candidate(chosen, predictions, is_chosen=True)}
    sides: tuple[float | None, float | None] = (None, None)
    if predictions and len(chosen.plan.prefill) and len(chosen.plan.decode):
        for name in candidate_names("hopper"):
            policy = as_candidate(scheduler.policy, name, "hopper")
            other = scheduler.under(policy)
            found = other.schedule(batch, decode_rows=decode_rows)
            launches = other.predict(found)
            candidates.setdefault(_name(found), _candidate(found, launches, is_chosen=False))
            if policy.serial:
                sides = launches[0].time_us, launches[1].time_us
    record = record_of(scheduler.gpu) if predictions else None
    return Explanation(
        gpu=scheduler.gpu.name,
        record=record.calibration.launch_costs.gpu if record else None,
        record_kind=record.kind if record else None,
        batch=_described(chosen.plan),
        candidates=tuple(sorted(candidates.values(), key=_by_time)) if chosen.variants else (),
        prefill_us=sides[0],
        decode_us=sides[1],
        chosen_by="rule" if chosen.trial is None else "measurement",
        why=scheduler.why(chosen),
        note=_note(scheduler, chosen, record),
    )


def _name(schedule: Schedule) -> str:
    """Return the name of the policy that fixes what a schedule does."""
    plan, forms = schedule.plan, [variant.form for variant in schedule.variants]
    if forms != ["pod"]:
        return "serial" if len(forms) == 2 else f"{''.join(forms)} alone"
    if schedule.base.family != "hopper":
        return f"{plan.prefill_share}:{plan.decode_share}"
    if plan.prefill_only_ctas and plan.decode_only_ctas:
        return f"decode-only={plan.decode_only_ctas}, prefill-only={plan.prefill_only_ctas}"
    if plan.prefill_only_ctas:
        return f"prefill-only={plan.prefill_only_ctas}"
    return f"decode-only={plan.decode_only_ctas}"


def _candidate(
    schedule: Schedule, predictions: tuple[Prediction, ...], *, is_chosen: bool
) -> Candidate:
    return Candidate(
        name=_name(schedule),
        launches=len(schedule.variants),
        predicted_us=sum(each.time_us for each in predictions) if predictions else None,
        limit=max(predictions).limit if predictions else None,
        is_chosen=is_chosen,
    )


def _by_time(candidate: Candidate) -> float:
    return candidate.predicted_us or 0.0


def _described(plan: Plan) -> str:
    heads = plan.num_kv_heads
    return (
        f"{plan.num_prefill_units} units of prefill with {plan.prefill_keys * heads} keys, "
        f"{plan.num_decode_units} of decode with {plan.decode_keys * heads}"
    )


def _note(scheduler: Scheduler, schedule: Schedule, record: Record | None) -> str:
    if not schedule.variants:
        return ""
    if record is None:
        family = schedule.base.family
        return f"no prediction: the cost model knows the Hopper family alone, this is {family}"
    hint = "take it as a hint" if record.kind == "likest" else "the prediction does not choose"
    return f"predicted from {record}; {hint}{_joined(schedule.plan)}"


def _joined(plan: Plan) -> str:
    if not plan.num_joined_tokens:
        return ""
    return (
        f"\n{plan.num_joined_tokens} tokens share a prefix: a further, short launch joins them, "
        "which predictions leave out"
    )
