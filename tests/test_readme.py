"""The README and the pages on podrt itself keep to what exists, and leave nothing out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main
from readme import GUIDE, python_examples

from podrt import cli, knobs
from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import ARCHS
from podrt.kernels.families import FAMILIES
from podrt.kernels.hopper.config import DECODE_ROWS
from podrt.policy.policies import parse_policy
from podrt.policy.portable import RATIOS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("example", python_examples())
def test_python_examples_are_valid_and_short(example):
    ast.parse(example)
    code = [line for line in example.splitlines() if line.strip() and line[0] != "#"]
    assert len(code) <= 15


def _commands():
    """Every ``podrt ...`` in code: words up to the first option, placeholder or ``#``."""
    code = re.findall(r"^    .*$|^\$ .*$|`[^`\n]+`", GUIDE, re.MULTILINE)
    found = (re.search(r"\bpodrt((?: [a-z]+)+)", line) for line in code)
    return sorted({match[1].strip() for match in found if match})


@pytest.mark.parametrize("command", _commands())
def test_commands_exist(command):
    node = typer.main.get_command(cli.app)
    for word in command.split():
        if not hasattr(node, "commands"):
            break  # the rest are its arguments
        assert word in node.commands
        node = node.commands[word]


def test_every_command_is_named():
    root = typer.main.get_command(cli.app)
    leaves = {
        f"{name} {sub}".strip()
        for name, command in root.commands.items()
        for sub in (
            *getattr(command, "commands", [""]),
            *([""] if getattr(command, "invoke_without_command", False) else []),
        )
    }
    assert all(any(f"{c} ".startswith(f"{leaf} ") for c in _commands()) for leaf in leaves)


def test_options_exist():
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE))
    root = typer.main.get_command(cli.app)
    known = {
        option
        for command in root.commands.values()
        for leaf in (root, command, *getattr(command, "commands", {}).values())
        for parameter in leaf.params
        for option in parameter.opts
    }
    assert options <= known


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make (?:[A-Z]+=\S+ )?([a-z-]+)", GUIDE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_knob_is_described():
    for knob in knobs.list_knobs():
        assert f"| `{knob.variable}` | {knob.type_name} |" in GUIDE
        assert knob.meaning in GUIDE


def test_variants_table_is_complete():
    assert all(arch in GUIDE for arch in ARCHS)
    assert all("{}:{}".format(*ratio) in GUIDE for ratio in RATIOS)
    assert all(f"family `{family}`" in GUIDE for family in FAMILIES)
    assert _listing(DECODE_ROWS) in GUIDE


def _listing(values):
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"


def _policies():
    """The policies of the table; ``P:D`` stands for ratios."""
    (table,) = re.findall(r"\| policy \|.*\n\|[-|]+\n((?:\|.*\n)+)", GUIDE)
    return {name for row in table.splitlines() for name in re.findall(r'`"(.+?)"`', row)}


def test_policies_table_names_what_exists():
    for policy in _policies() - {"P:D"}:
        parse_policy(policy)


def test_policies_table_is_complete():
    with pytest.raises(UnsupportedConfigError) as error:
        parse_policy("?")
    allowed = re.findall(r"'(.+?)'", str(error.value).partition("allowed are")[2])
    assert {"auto", "serial"} <= set(allowed) <= _policies()
