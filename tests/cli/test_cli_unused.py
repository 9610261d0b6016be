"""Options that mean nothing beside the others are refused, with what they are for."""

from __future__ import annotations

import pytest
from cli_support import run

BATCH = ["--batch", "64@64 + 3x500"]
AXIS = ["--axis", "family=portable"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["plan", "64@64", "--budget", "64"], "--budget: for batches of --trace"),
        (["tune", "--heads", "8/2", "--dtype", "float16"], "--heads, --dtype: for the layer of"),
        (["explore", "check", "pod", "--head-dim", "64"], "--head-dim: for the layer of --axis"),
        (["tune", "--batches", "8"], "--batches: for batches of --trace"),
        (["explore", "sweep", *AXIS, *BATCH, "--only", "64"], "--only: for cases of --suite"),
        (["explore", "sweep", *AXIS, *BATCH, "--max-kv-tokens", "9"], "--max-kv-tokens: for batch"),
        (["explore", "sweep", *AXIS, *BATCH, "--seed", "1"], "--seed: for --random"),
        (
            ["explore", "sweep", *AXIS, "--suite", "peers", "--head-dim", "64"],
            "--head-dim: for the layer of --batch or --trace; a suite says its own",
        ),
        (
            ["explore", "sweep", "h100", "--v-head-dim", "64", "--only", "64"],
            "--v-head-dim, --only: a definition says its batches and layers itself",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_is_said_what_they_are_for(arguments: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run(*arguments)


def test_a_replay_measures_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match="--samples, --gpu: for what is measured; leave them out"):
        path = tmp_path / "sweep.jsonl"
        path.write_text("")
        run("explore", "sweep", "--replay", str(path), "--samples", "3", "--gpu", "h100")


def test_defaults_are_no_options_that_were_given() -> None:
    assert "64@64" in run("plan", "64@64", "--gpu", "h100")
