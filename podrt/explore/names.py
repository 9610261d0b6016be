"""Names that a person can use: an alias of each variant, and words that select some."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podrt.kernels.families import Variant
from podrt.kernels.variant import DTYPE_TAGS
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT

#: How many variants an error lists.
_SHOWN = 12
#: The word for pages, or what ends with it, as a part of an alias or a full name.
_PAGES = re.compile(r"(?:.*[-_])?page(\d+)")
_NAMED_PAGES = re.compile(r"(?:^|[-_])page(\d+)(?=$|[-_])|^page_size=(\d+)$")


def parts_of(variant: Variant) -> list[str]:
    """Return what tells a variant from all other default ones, a word each.

    Form, family, architecture where the family has several, element type, head_dim (``d192v128``
    where values are narrower), pages; then
    the packed query rows of a Hopper decode tile (``r8``), the keys of a Hopper prefill tile
    (``k176``) or the CTAs that share an SM (``c2``); ``full`` for the mask that is not
    causal, ``softcap`` for capped scores, ``tree`` for tree masks, ``pairs`` for KV heads in pairs.
    """
    fields = vars(variant)  # to_dict() would copy them, and thousands of variants are told apart
    is_hopper = variant.family == "hopper"
    parts = [variant.form, variant.family, *([] if is_hopper else [variant.arch])]
    parts += [DTYPE_TAGS[variant.dtype], variant.spec.heads_tag, pages_of(variant)]
    if not is_hopper:
        parts.append(f"c{fields['ctas_per_sm']}")
    elif variant.form == "prefill":
        parts.append(f"k{fields['kv_tile']}")
    else:
        parts.append(f"r{fields['decode_rows']}")
    if not variant.causal:
        parts.append("full")
    if variant.soft_cap:
        parts.append("softcap")
    if variant.tree_mask:
        parts.append("tree")
    return [*parts, "pairs"] if has_pairs(variant) else parts


def has_pairs(variant: Variant) -> bool:
    """Tell whether a variant decodes KV heads in pairs."""
    return bool(vars(variant).get("head_pairs"))


def alias_of(variant: Variant) -> str:
    """Return the short name of a default variant, such as ``pod-hopper-bf16-d128-page16-r8``."""
    return "-".join(parts_of(variant))


def narrow(variants: Sequence[Variant], words: Iterable[str]) -> list[Variant]:
    """Return the variants that every word selects.

    A word is an alias, some of its parts joined by dashes, ``field=value`` with a field of the
    config (``kv_tile=112``, ``prefill.rows=128``), or, where it is none of these, a piece of a full
    name from the beginning of one of its parts; ``page1`` is no piece of ``page16``.

    Raises
    ------
    ValueError
        A word selects none of those that the words before it left; names the nearest ones.
    """
    found, before = list(variants), ""
    for word in words:
        kept = [variant for variant in found if _is_selected(variant, word)]
        kept = kept or [variant for variant in found if _is_piece(variant, word)]
        if not kept:
            whose = f"no variant of {before.strip()!r}" if before else "no variant"
            raise ValueError(f"VARIANT={word!r}: {whose} {_nearest(found, word)}")
        found, before = kept, f"{before} {word}"
    return found


def the_one(variants: Sequence[Variant], asked: str) -> Variant:
    """Return the only variant.

    Raises
    ------
    ValueError
        There are several; says in which words they differ.
    """
    if len(variants) == 1:
        return variants[0]
    aliases = [alias_of(variant) for variant in variants]
    shown = "\n  ".join(aliases[:_SHOWN])
    more = f"\n  and {len(aliases) - _SHOWN} more" if len(aliases) > _SHOWN else ""
    raise ValueError(
        f"VARIANT={asked!r}: {len(variants)} variants have it in their names; "
        f"add one of the words in which they differ ({', '.join(differences(variants))}):"
        f"\n  {shown}{more}"
    )


def differences(variants: Sequence[Variant]) -> list[str]:
    """Return the words that some of the variants have and others have not, in order."""
    words = [parts_of(variant) for variant in variants]
    shared = set.intersection(*map(set, words)) if words else set()
    return list(dict.fromkeys(word for each in words for word in each if word not in shared))


def grouped(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Return variants that differ in element type and pages alone together, by what they share."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        apart = DTYPE_TAGS[variant.dtype], pages_of(variant)
        left = [part for part in parts_of(variant) if part not in apart]
        groups.setdefault("-".join(left), []).append(variant)
    return groups


def pages_of(variant: Variant) -> str:
    """Return the word for a variant's pages, such as ``page16``."""
    return "contiguous" if variant.page_size is None else f"page{variant.page_size}"


def pages_named(words: Iterable[str]) -> list[int]:
    """Return the page sizes that words name, which default variants need not have."""
    found = [match for word in words for match in _NAMED_PAGES.finditer(word)]
    return [int(match[1] or match[2]) for match in found]


def tiles_of(variant: Variant) -> str:
    """Return what a variant's full name has besides its alias: tiles, stages, registers, warps."""
    parts = variant.name.split("_")
    end = -2 - variant.soft_cap - variant.tree_mask - has_pairs(variant)  # pages and mask
    return " ".join(parts[parts.index(variant.spec.heads_tag) + 1 : end])


def _is_selected(variant: Variant, word: str) -> bool:
    field, equals, value = word.partition("=")
    if equals:
        found = _flat(variant.to_dict()).get(field, _MISSING)
        return found is not _MISSING and str(found).lower() == value.lower()
    parts = parts_of(variant)
    if variant.causal:
        parts.append("causal")
    return set(word.split("-")) <= set(parts)


def _is_piece(variant: Variant, word: str) -> bool:
    return not _PAGES.fullmatch(word) and f"_{word}" in f"_{variant.name}"


_MISSING = object()


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _nearest(variants: Sequence[Variant], word: str) -> str:
    """Say which words there are near one that selects nothing."""
    field, equals, _ = word.partition("=")
    configs = [_flat(variant.to_dict()) for variant in variants]
    if equals:
        values = dict.fromkeys(f"{field}={c[field]}".lower() for c in configs if field in c)
        if values:
            return f"has it; there are {', '.join(values)}"
        fields = list(dict.fromkeys(name for config in configs for name in config))
        near = difflib.get_close_matches(field, fields, n=4, cutoff=0.3)
        return f"has that field; fields are {', '.join(near or fields)}"
    known = dict.fromkeys(part for variant in variants for part in parts_of(variant))
    pieces = word.replace("_", "-").split("-")
    unknown = [piece for piece in pieces if piece and piece not in known] or pieces
    near = [m for piece in unknown for m in difflib.get_close_matches(piece, known, n=3)]
    near = near or (differences(variants) or list(known))[:_SHOWN]
    dims = any(re.fullmatch(r"d\d+", p) and int(p[1:]) not in HEAD_DIMS for p in pieces)
    more = f"; head dims are {HEAD_DIMS_TEXT}" if dims else ""
    return f"has it in its name; try {', '.join(dict.fromkeys(near))}{more}"
