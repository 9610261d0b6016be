"""What the site has beyond the files of docs/: the notes of design/, and the help of all commands.

Links between docs/ and design/ are written as they hold in the repository (``../design/x.md``); on
the site design/ is a folder of docs/. Notes name pages and each other in backticks, which become
links here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from podrt import cli

_ROOT = Path(__file__).resolve().parents[2]
_DESIGN = "design"
#: Where a page has the help of all commands.
_HELP = "<!-- help of all commands -->"
#: A note or page that is named in backticks, as ``cost-model.md`` or ``docs/vllm.md``.
_NAMED = re.compile(r"(?<!\[)`(?P<folder>docs/|design/|)(?P<page>[\w-]+\.md)`(?!\])")
#: Notes in the order in which to read them; others follow by name.
_FIRST = ("architecture.md", "foundation.md")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notes of design/ in the place of its line in the navigation."""
    config.nav = [_with_notes(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notes of design/."""
    for note in _notes():
        files.append(File.generated(config, f"{_DESIGN}/{note.name}", abs_src_path=str(note)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links between the two folders hold on the site, and put in the help of commands."""
    if _HELP in markdown:
        markdown = markdown.replace(_HELP, _help())
    if page.file.src_uri.startswith(f"{_DESIGN}/"):
        return _NAMED.sub(_as_link, re.sub(r"\]\(\.\./docs/", "](../", markdown))
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./{_DESIGN}/", f"]({up}{_DESIGN}/", markdown)


def _as_link(name: re.Match[str]) -> str:
    """Return what a note names as a link, or as it is where the site has no such page."""
    folder, page = name["folder"] or "design/", name["page"]
    if not (_ROOT / folder / page).is_file():
        return name[0]
    return f"[{name[0]}]({'../' if folder == 'docs/' else ''}{page})"


def _help() -> str:
    """Return the help of all sub-commands as Markdown, a heading each."""
    root = typer.main.get_command(cli.app)
    whole = typer.cli.get_docs_for_click(obj=root, ctx=typer.Context(root), name="podrt")
    return whole[whole.index("## ") :]


def _with_notes(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {
            title: [f"{_DESIGN}/{note.name}" for note in _notes()] if to == f"{_DESIGN}/" else to
            for title, to in entry.items()
        }
    return entry


def _notes() -> list[Path]:
    notes = (_ROOT / _DESIGN).glob("*.md")
    return sorted(notes, key=lambda note: (note.name not in _FIRST, note.name))
