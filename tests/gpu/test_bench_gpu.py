"""One tiny suite through ``podrt bench``, on a GPU."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from podrt import cli
from podrt.bench.results import load

SUITE = """
description = "tiny"

[[group]]
name = "tiny"
heads = [[8, 2]]
head_dims = [64]
page_sizes = ["contiguous", 16]
dtype = "{dtype}"
policies = ["50:50", "1:4", "no such policy"]
points = [{{ prefill = [[100, 300], [17, 17]], decode = {{ requests = 9, kv_len = 513 }} }}]

[[group]]
name = "solo"
heads = [[8, 2]]
head_dims = [64]
page_sizes = [16]
dtype = "{dtype}"
points = [{{ decode = {{ requests = 9, kv_len = 513 }} }}]
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_tiny_suite(tmp_path, dtype):
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE.format(dtype=dtype))
    arguments = ["bench", "--suite", str(suite), "--out", str(tmp_path), "--peers", "none"]
    result = CliRunner().invoke(cli.app, [*arguments, "--only", "page16"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli.app, [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    results = load(tmp_path / "tiny.json")
    assert len(results.case_names) == 3
    ceilings = results.environment["ceilings"]
    assert ceilings["matmul_tflops"] > 0 < ceilings["read_gbs"]
    for row in results.rows:
        if row.policy == "no such policy":
            assert "no such policy" in row.error
            assert row.time_us is None
            continue
        assert row.error is None, (row.case, row.policy)
        assert row.time_us > 0
        assert row.method == "graph"
        assert len(row.samples_us) >= 20
        assert row.max_rel_err < 0.02
        assert 0 < row.oracle_us <= row.floor_us
        if row.case.startswith("tiny"):
            assert row.own_serial_us > 0 < row.own_streams_us
