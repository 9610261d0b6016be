"""From a template and its values to CUDA C++, and the headers that such a text includes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

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
    return _environment(templates_dir()).get_template(template).render(context)


def include_option() -> str:
    """Return the NVRTC option that makes ``#include "..."`` relative to `templates_dir`."""
    return f"--include-path={templates_dir()}"


def header_digest(text: str) -> str:
    """Return the SHA-256 of all headers that `text` includes with quotes, directly or not.

    Raises
    ------
    FileNotFoundError
        If a header is missing; names it and who includes it.
    """
    headers: dict[str, bytes] = {}
    _collect_headers(text, "the kernel", templates_dir(), headers)
    digest = hashlib.sha256()
    for name in sorted(headers):
        digest.update(f"{name}\0{len(headers[name])}\0".encode())
        digest.update(headers[name])
    return digest.hexdigest()


def _collect_headers(text: str, includer: str, root: Path, headers: dict[str, bytes]) -> None:
    for name in _QUOTED_INCLUDE.findall(text):
        if name in headers:
            continue
        try:
            headers[name] = (root / name).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f'#include "{name}" in {includer}: no such file in {root}'
            ) from None
        _collect_headers(headers[name].decode(), name, root, headers)


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
