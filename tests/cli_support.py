"""The command line as the tests call it, and filters that leave few and quick kernels."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from podrt import cli
from podrt.explore.select import select

#: Filters that leave the quickest kernels to compile.
SMALL = ["--arch", "sm_80", "--form", "decode", "--head-dim", "64", "--dtype", "float16"]
SMALL_PAGED = [*SMALL, "--page-size", "16"]
#: One quick variant of the Hopper family.
HOPPER = ["--arch", "sm_90a", "--family", "hopper", "--form", "decode", "--head-dim", "64"]
HOPPER += ["--dtype", "float16", "--page-size", "16", "--decode-rows", "8"]


def run(*arguments, exit_code=0):
    """Run a command and return what it printed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.stdout


def run_json(*arguments, exit_code=0):
    """Run a command with ``--json`` and return what it printed, read."""
    return json.loads(run(*arguments, "--json", exit_code=exit_code))


def small_paged():
    """Return the variants that `SMALL_PAGED` leaves."""
    return select(
        archs=["sm_80"],
        forms=["decode"],
        head_dims=[64],
        dtypes=["float16"],
        page_sizes=["16"],
    )
