"""Which variants somebody means: by architecture, filters, or part of a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from podrt.errors import PodrtError
from podrt.explore.names import alias_of, has_pairs, narrow, pages_named, parts_of, the_one
from podrt.gpu.arch import ARCHS
from podrt.gpu.device import current_device
from podrt.kernels.families import Variant, all_default_variants
from podrt.kernels.hopper.config import V_HEAD_DIMS
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT
from podrt.workloads.lengths import parse_page_size

#: Compiled for when there is no GPU to ask.
FALLBACK_ARCH = "sm_90a"
#: A head_dim in a name, an alias or a field, and a v_head_dim.
_HEAD_DIM = re.compile(r"(?:(?<![a-z0-9])d|(?<![a-z0-9_])head_dim=)(\d+)(?![0-9x])")
_V_HEAD_DIM = re.compile(r"(?:(?<![a-z0-9])d\d+v|(?<![a-z0-9_])v_head_dim=)(\d+)")


def detected_arch() -> str:
    """Return the architecture of the current GPU, or `FALLBACK_ARCH` without one."""
    try:
        return current_device().arch.name
    except PodrtError:  # no GPU, or one that podrt does not serve
        return FALLBACK_ARCH


def select(
    words: Sequence[str] = (),
    *,
    archs: Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    head_dims: Sequence[int] | None = None,
    v_head_dims: Sequence[int] | None = None,
    page_sizes: Sequence[str] | None = None,
    decode_rows: Sequence[int] | None = None,
    families: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    soft_caps: Sequence[bool] | None = None,
    tree_masks: Sequence[bool] | None = None,
) -> list[Variant]:
    """Return the default variants that all words select, and that pass every given filter.

    None lets everything pass; but of masks it means the causal one, of scores those that are not
    capped, and no trees, wherever words leave some of those. Head dims and page sizes need not be
    among the default ones: variants are made for any that a family serves and that filters or
    words name. Values are as wide as keys but for a `v_head_dim` that filters or words name.

    Raises
    ------
    ValueError
        A word or a filter's value is malformed or unknown, or nothing passes all of them.
    """
    asked = " ".join(words)
    found = [
        variant
        for arch in _archs(archs)
        for v_head_dim in _v_head_dims(v_head_dims, asked)
        for variant in all_default_variants(
            arch,
            v_head_dim=v_head_dim,
            head_dims=_head_dims(head_dims, asked, v_head_dim),
            page_sizes=_page_sizes(page_sizes, asked),
            soft_caps=soft_caps or (False, True),
            tree_masks=tree_masks or (False, True),
        )
    ]
    missing = set(v_head_dims or ()) - {variant.v_head_dim for variant in found}
    if missing:
        raise ValueError(
            f"v_head_dim={', '.join(map(str, sorted(missing)))}: no variant has it; values are "
            "narrower than the keys of head_dim; leave it out for values as wide as keys"
        )
    filters: dict[str, Sequence[Any] | None] = {
        "family": families,
        "form": forms,
        "dtype": dtypes,
        "decode_rows": decode_rows,
    }
    for field, allowed in filters.items():
        if allowed is not None:
            found = _keep(found, field, allowed)
    found = _masked(found, _causals(masks))
    exact = [v for v in found if asked in (v.name, alias_of(v))] if words else []
    found = exact or narrow(found, words)
    if masks is None:
        found = [v for v in found if v.causal] or found
    if soft_caps is None:
        found = [v for v in found if not v.soft_cap] or found
    if tree_masks is None:
        found = [v for v in found if not v.tree_mask] or found
    return found


def find(words: Sequence[str], archs: Sequence[str] | None = None) -> Variant:
    """Return the one variant that words select, as of `select`.

    Where they fit several, a full name means that one, and those of the current GPU's architecture
    are meant, unless `archs` says which, and of heads one by one rather than in pairs.

    Raises
    ------
    ValueError
        No variant matches, or several do; the message says what would tell them apart.
    """
    found = select(words, archs=archs or ["all"])
    if not archs:
        found = [v for v in found if v.arch == detected_arch()] or found
    found = [v for v in found if not has_pairs(v)] or found
    return the_one(found, " ".join(words))


def completions(beginning: str) -> list[str]:
    """Return what a shell completes: aliases of this GPU's architecture, else their words.

    Of aliases the plain ones, if any begins so.
    """
    known: dict[str, Any] = {
        "head_dims": _head_dims(None, beginning),
        "v_head_dims": _v_head_dims(None, beginning)[1:] or None,
        "page_sizes": list(map(str, _page_sizes(None, beginning))),
    }
    plain = select(**known)
    more = select(
        **known,
        masks=["causal", "full"],
        soft_caps=[False, True],
        tree_masks=[False, True],
    )
    words = dict.fromkeys(part for variant in more for part in parts_of(variant))
    for names in (map(alias_of, plain), map(alias_of, more), words):
        found = [name for name in names if name.startswith(beginning)]
        if found:
            return found
    return []


def _head_dims(
    filter_: Sequence[int] | None, asked: str, v_head_dim: int | None = None
) -> list[int]:
    """Return those of a filter, else the default ones and those that words name.

    Beside them those whose Hopper variants have narrower values of `v_head_dim`.
    """
    if filter_ is not None:
        return [_checked_head_dim(head_dim) for head_dim in filter_]
    named = {int(head_dim) for head_dim in _HEAD_DIM.findall(asked.lower())} & set(HEAD_DIMS)
    paired = {head_dim for head_dim, narrower in V_HEAD_DIMS.items() if v_head_dim in narrower}
    return sorted(named.union(paired, DEFAULT_HEAD_DIMS))


def _v_head_dims(filter_: Sequence[int] | None, asked: str) -> list[int | None]:
    """Return those of a filter, else none, values as wide as keys, and those that words name."""
    if filter_ is not None:
        return [_checked_head_dim(v_head_dim, "v_head_dim") for v_head_dim in filter_]
    named = {int(v_head_dim) for v_head_dim in _V_HEAD_DIM.findall(asked.lower())}
    return [None, *sorted(named & set(HEAD_DIMS))]


def _page_sizes(filter_: Sequence[str] | None, asked: str) -> list[int | None]:
    """Return those of a filter, else the default ones and those that words name."""
    if filter_ is not None:
        return [parse_page_size(text) for text in filter_]
    return list(dict.fromkeys([*DEFAULT_PAGE_SIZES, *pages_named(asked.lower().split())]))


def _checked_head_dim(head_dim: int, name: str = "head_dim") -> int:
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"{name}={head_dim}: allowed are {HEAD_DIMS_TEXT}")
    return head_dim


def _archs(names: Sequence[str] | None) -> list[str]:
    if not names:
        return [detected_arch()]
    return list(ARCHS) if "all" in names else list(dict.fromkeys(names))


def _causals(masks: Sequence[str] | None) -> list[bool]:
    for mask in masks or ():
        if mask not in ("causal", "full"):
            raise ValueError(f"mask={mask!r}: allowed are causal, full")
    return [mask == "causal" for mask in dict.fromkeys(masks or ("causal", "full"))]


def _masked(variants: Sequence[Variant], causals: Sequence[bool]) -> list[Variant]:
    """Return causal variants with each of some masks, those of one together."""
    found = [
        variant if variant.causal == causal else replace(variant, causal=causal)
        for causal in causals
        for variant in variants
        if causal or not variant.tree_mask
    ]
    if not found:
        raise ValueError("mask=full: trees are causal masks; leave one of them out")
    return found


def _value(config: Variant, field: str) -> Any:
    if field == "decode_rows" and not config.has_decode:
        return None
    return getattr(config, field)


def _keep(variants: list[Variant], field: str, allowed: Sequence[Any]) -> list[Variant]:
    kept = [variant for variant in variants if _value(variant, field) in allowed]
    if not kept:
        known = sorted({_text(_value(variant, field)) for variant in variants})
        raise ValueError(
            f"{field}={', '.join(map(_text, allowed))}: no variant has it; "
            f"there are {', '.join(known)}"
        )
    return kept


def _text(value: Any) -> str:
    return str(value).lower()
