"""Made-up results for the tests of the benchmark suite."""

from __future__ import annotations

from podrt.bench.case import Case
from podrt.bench.results import Results, Row, decode_summary

ENVIRONMENT = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "sm_count": 132,
    "driver": "580.1",
    "nvrtc": "13.0",
    "cupy": "14.0",
    "podrt": "0.1",
    "git_commit": "abc",
    "date": "2026-01-01T00:00:00+00:00",
    "peers": {},
    "ceilings": {"matmul_tflops": 700.0, "read_gbs": 3000.0},
}


def make_case(name="group/32-8 d128 page16/512@4096 + 64x4096", prefill=((512, 4096),), decode=64):
    return Case(name, 32, 8, 128, "bfloat16", 16, prefill, (4096,) * decode)


def make_rows(case, times_us, *, peers_us=None, spread=0.01, errors=None, **changes):
    """Return a row per policy; a time of None is a failure."""
    return [
        Row(
            case=case.name,
            num_qo_heads=case.num_qo_heads,
            num_kv_heads=case.num_kv_heads,
            head_dim=case.head_dim,
            dtype=case.dtype,
            page_size=case.page_size,
            prefill=[list(lengths) for lengths in case.prefill],
            decode=decode_summary(case.decode),
            variant=None if us is None else "kernel",
            policy=policy,
            time_us=us,
            quartiles_us=None if us is None else [us * (1 - spread), us * (1 + spread)],
            samples_us=[] if us is None else [us] * 3,
            method=None if us is None else "graph",
            sm_clock_mhz=None,
            error="UnsupportedConfigError: no" if us is None else None,
            own_serial_us=times_us.get("serial"),
            own_streams_us=times_us.get("streams"),
            peers_us=peers_us or {},
            peer_errors=errors or {},
            oracle_us=changes.get("oracle_us"),
            floor_us=changes.get("floor_us"),
            max_rel_err=None if us is None else 1e-3,
        )
        for policy, us in times_us.items()
    ]


def make_results(*groups, **environment):
    return Results({**ENVIRONMENT, **environment}, tuple(row for group in groups for row in group))
