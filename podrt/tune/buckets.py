"""From batches to winners: the first batch of every bucket is run as each candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from podrt.bench.case import Case
from podrt.gpu.device import DeviceInfo
from podrt.policy.buckets import Bucket, bucket_of, layer_name
from podrt.policy.candidates import candidate_names
from podrt.policy.policies import Policy
from podrt.policy.schedule import Scheduler
from podrt.policy.winners import RULES, Trial
from podrt.spec.attention import AttentionSpec
from podrt.tune.measure import Measure
from podrt.workloads.files import read_text
from podrt.workloads.lengths import batch_of_lengths, describe_lengths, parse_lengths

Lengths = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class BucketCase:
    """A batch that is to be measured for its bucket.

    Attributes
    ----------
    layer : str
        As `layer_name` says.
    bucket : Bucket
        Whose it is.
    case : Case
        The batch; its policies are the rules and all candidates.
    """

    layer: str
    bucket: Bucket
    case: Case


def read_shapes(path: Path) -> list[list[tuple[int, int]]]:
    """Return the batches of a text file: one a line as `parse_lengths` reads it, or ``#`` ...

    Raises
    ------
    ValueError
        A line is none, or the file has none; names file and line.
    """
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                found.append(parse_lengths(text))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f'{path}: has no batch; write one a line, such as "2048@16384 + 64x16384"')
    return found


def bucket_cases(
    batches: Iterable[Lengths], spec: AttentionSpec, gpu: DeviceInfo
) -> tuple[BucketCase, ...]:
    """Return a case for each bucket that batches fall into, that of its first batch.

    Parameters
    ----------
    batches : iterable of sequences of (q_len, kv_len)
        Those of one kind alone are left out: there is nothing to choose.
    spec : AttentionSpec
        The layer, causal.
    gpu : DeviceInfo
        The GPU, which decides the kernel family.
    """
    family = Scheduler(spec, gpu, Policy()).family
    layer, found = layer_name(spec, family), dict[Bucket, BucketCase]()
    for lengths in batches:
        bucket = bucket_of(batch_of_lengths(lengths, spec.page_size), spec.mask)
        if bucket is not None and bucket not in found:
            names = (RULES, *candidate_names(family))
            name = describe_lengths(lengths)
            case = Case.of(lengths, spec, name=name, policies=names)
            found[bucket] = BucketCase(layer, bucket, case)
    return tuple(found.values())


def run_trials(
    cases: Iterable[BucketCase], measure: Measure, on_case: Callable[[], None] = lambda: None
) -> tuple[Trial, ...]:
    """Measure cases and return what their candidates took; `on_case` is called after each."""
    trials = []
    for each in cases:
        times_us = {name: round(us, 2) for name, us in measure(each.case).items()}
        trials.append(Trial(each.layer, each.bucket, each.case.name, times_us))
        on_case()
    return tuple(trials)
