"""From a template and its values to CUDA C++, and the headers that such a text includes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podrt.jit.fork import no_fork

if TYPE_CHECKING:
    from jinja2 import Environment

#: Name and text of each header, by name.
Headers = tuple[tuple[str, str], ...]

_QUOTED_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def templates_dir() -> Path:
    """Return the folder of templates and headers: inside an installed wheel, or a checkout's own.

    Raises
    ------
    FileNotFoundError
        If neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "templates", package.parent / "templates")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no templates in {' or '.join(map(str, candidates))}: reinstall podrt")


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render `template`, a path relative to `templates_dir`.

    Raises
    ------
    jinja2.TemplateNotFound
        If there is no such template.
    jinja2.UndefinedError
        If the template uses a name that `context` lacks.
    """
    with no_fork():
        return _environment(templates_dir()).get_template(template).render(context)


def collect_headers(text: str) -> Headers:
    """Return all headers that `text` includes with quotes, directly or not, by name.

    Raises
    ------
    FileNotFoundError
        If a header is missing; names it and who includes it.
    """
    headers: dict[str, str] = {}
    _collect_headers(text, "the kernel", templates_dir(), headers)
    return tuple(sorted(headers.items()))


def _collect_headers(text: str, includer: str, root: Path, headers: dict[str, str]) -> None:
    for name in _QUOTED_INCLUDE.findall(text):
        if name in headers:
            continue
        try:
            headers[name] = (root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(
                f'#include "{name}" in {includer}: no such file in {root}'
            ) from None
        _collect_headers(headers[name], name, root, headers)


@cache
def _environment(root: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(root),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
