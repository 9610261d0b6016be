"""A bench for sweeps that needs no GPU: times are the cost model's, or follow from the name."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from pathlib import Path

from podrt.bench.sweep.axes import Combination
from podrt.bench.sweep.definition import Definition, cases_of
from podrt.bench.sweep.measure import Checked
from podrt.bench.sweep.points import points_of
from podrt.bench.sweep.records import Journal
from podrt.bench.sweep.runner import Runner
from podrt.bench.timing import Timing
from podrt.gpu.nominal import H100
from podrt.spec.attention import make_spec

TOLERANCE = 2.0**-6
ENVIRONMENT = {
    "gpu": H100.name,
    "sm_count": 132,
    "driver": "580.1",
    "nvrtc": "13.0",
    "cupy": "14.0",
    "podrt": "0.1",
    "git_commit": "abc",
    "date": "2026-01-01T00:00:00+00:00",
    "predictions_from": "the shipped record of an NVIDIA H100",
    "ceilings": {"matmul_tflops": 700.0, "read_gbs": 3000.0},
    "samples": 3,
    "command": "podrt explore sweep",
}
BATCHES = ("512@4096 + 16x4096", "2048@4096 + 64x4096")


def layer():
    return make_spec(32, 8, 128, 16, "NHD", "bfloat16")


def combination(**fixed):
    return Combination(tuple(fixed.items()))


def definition(*combinations, batches=BATCHES, skipped=()):
    chosen = combinations or tuple(
        combination(family="hopper", decode_only_sms=sms) for sms in (0, 8, 16)
    )
    return Definition("small", "", chosen, tuple(skipped), cases_of(batches, layer()), 3)


class FakeBench:
    """Stands for `GpuBench`; what its attributes say of a variant's name happens to it.

    Attributes
    ----------
    log : list of (str, name of the case, names of variants)
        What was asked for.
    errors : dict of str to float
        Errors against float64.
    failures : dict of str to exception
        Raised by a check.
    """

    def __init__(self):
        self.log, self.errors, self.failures = [], {}, {}
        self.stop_at = None
        self.case = None

    @contextmanager
    def open(self, case):
        self.case = case
        self.log.append(("open", case.name, ()))
        yield self

    def check(self, point):
        self.log.append(("check", point.case.name, (point.name,)))
        if self.stop_at == (point.case.name, point.name):
            raise KeyboardInterrupt
        if point.name in self.failures:
            raise self.failures[point.name]
        error = self.errors.get(point.name, 1e-3)
        where = "request 0, row 0 of q, head 3, element 17"
        return Checked(error, TOLERANCE, where, lambda: point)

    def time(self, launches, samples):
        points = [launch() for launch in launches]
        self.log.append(("time", self.case.name, tuple(point.name for point in points)))
        return [Timing((us(point),) * samples, "graph", 1755) for point in points]

    def names(self, what):
        return [(case, *names) for kind, case, names in self.log if kind == what]


def us(point):
    """Return a time that is always the same: what is predicted, a few percent off by the name."""
    noise = zlib.crc32(f"{point.name} {point.case.name}".encode()) % 100 / 1000
    return round((point.predicted_us or 1500.0) * (0.95 + noise), 2)


def run(path: Path, wanted, bench=None, *, gpu_error=lambda: None, **options):
    """Run a sweep with a fake bench; return what became of it."""
    bench = bench or FakeBench()
    points, skips = points_of(wanted, H100)
    with Journal(path) as journal:
        for skip in skips:
            journal.add(skip)
        journal.add_environment("e1", ENVIRONMENT)
        runner = Runner(journal, "e1", bench.open, gpu_error, wanted.samples, **options)
        return runner.run(points)
