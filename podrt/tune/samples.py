"""What was measured, with the schedules that it was measured of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from podrt.bench.case import Case
from podrt.gpu.device import DeviceInfo
from podrt.policy.policies import Policy, parse_policy
from podrt.policy.schedule import Schedule, schedule
from podrt.tune.measure import Measure
from podrt.workloads.lengths import batch_of_lengths


class Sample(NamedTuple):
    """One way to run a case, and its time.

    Attributes
    ----------
    case, policy : str
        Their names.
    schedule : Schedule
        What was launched.
    time_us : float
        Median time.
    """

    case: str
    policy: str
    schedule: Schedule
    time_us: float

    @property
    def forms(self) -> str:
        """What kind of launch it was: ``"pod"``, ``"prefill"``, ``"decode"`` or a pair of them."""
        return " + ".join(variant.form for variant in self.schedule.variants)


def take_samples(
    cases: Iterable[Case],
    gpu: DeviceInfo,
    measure: Measure,
    on_case: Callable[[], None] = lambda: None,
) -> list[list[Sample]]:
    """Measure cases and return the samples of each; `on_case` is called after each."""
    found = []
    for case in cases:
        times_us = measure(case)
        found.append(
            [
                Sample(case.name, name, schedule_of(case, gpu, parse_policy(name)), times_us[name])
                for name in case.policies
            ]
        )
        on_case()
    return found


def schedule_of(case: Case, gpu: DeviceInfo, policy: Policy) -> Schedule:
    """Return what runs a case under a policy."""
    return schedule(batch_of_lengths(case.lengths, case.page_size), case.spec(), gpu, policy)
