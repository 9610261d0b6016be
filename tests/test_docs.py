"""Pages of the documentation: what they show runs and prints what they say; links hold."""

from __future__ import annotations

import re
import shlex

import pytest
from readme import ROOT, blocks, page_names, read
from typer.testing import CliRunner

import podrt
from podrt import cli

#: Narrow enough for short names, wide enough that none is folded.
_WIDTH = 149
_LANGUAGES = ("console", "python")


def _runnable(page):
    return [b for b in blocks(page) if not b.needs and (b.language in _LANGUAGES or b.file)]


_PAGES = [page for page in page_names() if _runnable(page)]


@pytest.mark.parametrize("page", _PAGES)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    """In its order, in one folder and one program, each command printing what stands below it."""
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(_WIDTH))
    names: dict[str, object] = {"__name__": "page"}
    for block in _runnable(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        else:
            for command, expected in _commands(block.text):
                _check(command, expected, any_number=block.numbers is not None)


def test_pages_have_blocks_that_run():
    assert {"docs/tutorial.md", "docs/policies.md", "docs/add-a-variant.md"} <= set(_PAGES)


def _commands(console):
    """Commands behind ``$``, which a backslash continues, and what is printed below each."""
    for part in re.split(r"^\$ ", console.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected.strip("\n")


def _check(command, expected, *, any_number):
    program, *arguments = shlex.split(command, comments=True)
    assert program == "podrt", f"{command}: only podrt is run; say what the block needs"
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
    printed = _trimmed(result.output)
    if expected:
        pattern = _pattern(_trimmed(expected))
        if any_number:
            pattern = re.sub(r"\d+(\\\.\d+)?", lambda _: r"[\d.]+", pattern)
        assert re.fullmatch(pattern, printed, re.DOTALL), (
            f"$ {command}\nprinted:\n{printed}\nexpected:\n{expected}"
        )


def _trimmed(text):
    """Spaces are as wide as columns of tables, which are as wide as what else is in them."""
    lines = (re.sub("─+", "─", " ".join(line.split())) for line in text.splitlines())
    return "\n".join(lines).strip("\n")


def _pattern(expected):
    """``...`` stands for anything, alone on a line for lines."""
    return r".*?".join(map(re.escape, expected.split("...")))


def test_the_reference_has_every_public_name():
    text = "".join(read(page) for page in page_names() if page.startswith("docs/reference/"))
    described = set(re.findall(r"^::: podrt\.(\w+)$", text, re.MULTILINE))
    assert described == set(podrt.__all__) - {"__version__"}


_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize(
    "page", page_names() + [f"design/{p.name}" for p in (ROOT / "design").glob("*.md")]
)
def test_links_lead_to_files(page):
    for link in _LINK.findall(re.sub(r"```.*?```|`[^`]*`", "", read(page), flags=re.DOTALL)):
        path = link.partition("#")[0]
        if path and "://" not in path:
            assert (ROOT / page).parent.joinpath(path).exists(), link


@pytest.mark.parametrize("page", page_names())
def test_no_page_knows_the_machine_that_it_was_written_on(page):
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work)/", read(page))
