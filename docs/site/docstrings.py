"""How docstrings are read for the site: choices as types, and names in backticks as links.

Loaded by mkdocstrings as an extension of griffe.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: ``name : {a, b}, optional``: griffe would show the first as the default.
_CHOICES = re.compile(r"^(\w[\w, ]* : )\{(.+)\}(?:, optional)?$", re.MULTILINE)
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


class Docstrings(griffe.Extension):
    """Rewrites docstrings once they have been read from the source."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            text = _CHOICES.sub(_as_alternatives, obj.docstring.value)
            obj.docstring.value = _NAME.sub(lambda match: _as_link(match[1], obj), text)


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
