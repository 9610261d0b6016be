"""What the site has beyond the files of docs/: the design notes, beside which they stay in design/.

Links between docs/ and design/ are written as they hold in the repository (``../design/x.md``); on
the site design/ is a folder of docs/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[2]
_DESIGN = "design"
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
    """Make links between the two folders hold on the site."""
    if page.file.src_uri.startswith(f"{_DESIGN}/"):
        return re.sub(r"\]\(\.\./docs/", "](../", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./{_DESIGN}/", f"]({up}{_DESIGN}/", markdown)


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
