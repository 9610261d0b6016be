"""``podrt demo`` and ``podrt doctor`` on a GPU."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from podrt import cli

SMALL = ["--budget", "128", "--batches", "2", "--max-kv-tokens", "4096"]
LAYER = ["--num-qo-heads", "8", "--num-kv-heads", "2", "--head-dim", "64"]


@pytest.mark.parametrize(
    ("dtype", "policy"), [("bfloat16", "auto"), ("float16", "auto"), ("bfloat16", "portable")]
)
def test_demo_agrees_with_the_reference(tmp_path, dtype, policy):
    trace = tmp_path / "trace.csv"
    rows = "".join(f"0,{300 + 70 * number},{20 + number}\n" for number in range(12))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    arguments = ["demo", "--trace", str(trace), *SMALL, *LAYER, "--dtype", dtype]
    arguments += ["--policy", policy]
    result = CliRunner().invoke(cli.app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["batches"]) == 2
    for batch in report["batches"]:
        assert batch["ok"]
        assert batch["family"] in batch["variants"][0]
        assert policy in ("auto", batch["family"])
        assert batch["error"] <= report["tolerance"]
        assert batch["prefills"] > 0 < batch["decodes"]
        assert batch["fused_us"] > 0 < batch["serial_us"]

    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "All batches agree." in result.stdout


def test_doctor_finds_the_gpu():
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["can_run"] is True
