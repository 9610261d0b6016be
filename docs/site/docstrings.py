"""How docstrings are read for the site: a parameter an entry, choices as types, names as links.

Loaded by mkdocstrings as an extension of griffe.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: ``q, k_cache : type`` and what is said of them: griffe would give all the default of the first.
_SEVERAL = re.compile(
    r"^(?P<names>\w+(?:, \w+)+)(?P<type> : .+)?\n(?P<body>(?:    .*\n?)+)", re.MULTILINE
)
#: ``name : {a, b}, optional``: griffe would show the first as the default.
_CHOICES = re.compile(r"^(\w[\w, ]* : )\{(.+)\}(?:, optional)?$", re.MULTILINE)
#: ``docs/contract.md`` in double backticks.
_PAGE = re.compile(r"``docs/([\w-]+)\.md``")
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


class Docstrings(griffe.Extension):
    """Rewrites docstrings once they have been read from the source."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            text = _with_entries(obj.docstring.value)
            text = _CHOICES.sub(_as_alternatives, text)
            text = _PAGE.sub(r"[docs/\1.md](../\1.md)", text)  # from reference/
            obj.docstring.value = _NAME.sub(lambda match: _as_link(match[1], obj), text)


def _with_entries(text: str) -> str:
    """Part what is said of several parameters, but not of several errors."""
    parameters, raises, errors = text.partition("\nRaises\n")
    return _SEVERAL.sub(_one_by_one, parameters) + raises + errors


def _one_by_one(match: re.Match[str]) -> str:
    body = match["body"] if match["body"].endswith("\n") else match["body"] + "\n"
    names = match["names"].split(", ")
    return "".join(f"{name}{match['type'] or ''}\n{body}" for name in names)


def _as_alternatives(match: re.Match[str]) -> str:
    return match[1] + " or ".join(match[2].split(", "))


def _as_link(name: str, obj: griffe.Object) -> str:
    """Return the name as a link, which stays plain where the site has no such object."""
    if name.startswith("podrt."):
        to = name
    elif name[0].isupper():
        to = f"podrt.{name}"
    else:
        owner = obj if obj.is_class else obj.parent
        if owner is None or not owner.is_class or name not in owner.members or name == obj.name:
            return f"`{name}`"
        to = f"{owner.path}.{name}"
    return f'<autoref identifier="{to}" optional>`{name}`</autoref>'
