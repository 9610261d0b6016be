"""Which variants somebody means: by architecture, filters, or part of a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from podrt.errors import PodrtError
from podrt.explore.names import alias_of, narrow, pages_named, the_one
from podrt.gpu.arch import ARCHS
from podrt.gpu.device import current_device
from podrt.kernels.families import Variant, all_default_variants
from podrt.kernels.variant import DEFAULT_HEAD_DIMS, DEFAULT_PAGE_SIZES
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT

#: Compiled for when there is no GPU to ask.
FALLBACK_ARCH = "sm_90a"
#: A head_dim in a name, an alias or a field.
_HEAD_DIM = re.compile(r"(?<![a-z0-9])(?:d|head_dim=)(\d+)(?![0-9x])")


def detected_arch() -> str:
    """Return the architecture of the current GPU, or `FALLBACK_ARCH` without one."""
    try:
        return current_device().arch.name
    except PodrtError:  # no GPU, or one that podrt does not serve
        return FALLBACK_ARCH


def select(
    *,
    archs: Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    head_dims: Sequence[int] | None = None,
    page_sizes: Sequence[str] | None = None,
    decode_rows: Sequence[int] | None = None,
    families: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    soft_caps: Sequence[bool] = (False,),
    tree_masks: Sequence[bool] = (False,),
) -> list[Variant]:
    """Return the default variants that pass every given filter; None lets everything pass.

    Of the masks, None lets the causal one pass alone; of scores, those that are not capped pass
    unless `soft_caps` says otherwise, and those without trees unless `tree_masks` does. Head dims
    and page sizes need not be among the default ones: variants are made for any that a family
    serves.

    Raises
    ------
    ValueError
        A filter's value is malformed or unknown, or nothing passes all filters.
    """
    sizes = (
        DEFAULT_PAGE_SIZES if page_sizes is None else [parse_page_size(text) for text in page_sizes]
    )
    dims = DEFAULT_HEAD_DIMS if head_dims is None else [_checked_head_dim(d) for d in head_dims]
    found = [
        variant
        for arch in _archs(archs)
        for variant in all_default_variants(
            arch, head_dims=dims, page_sizes=sizes, soft_caps=soft_caps, tree_masks=tree_masks
        )
    ]
    filters: dict[str, Sequence[Any] | None] = {
        "family": families,
        "form": forms,
        "dtype": dtypes,
        "decode_rows": decode_rows,
    }
    for field, allowed in filters.items():
        if allowed is not None:
            found = _keep(found, field, allowed)
    # Trees are causal.
    return [
        replace(v, causal=causal)
        for causal in _causals(masks)
        for v in found
        if causal or not v.tree_mask
    ]


def find(words: Sequence[str], archs: Sequence[str] | None = None) -> Variant:
    """Return the one default variant, of any mask and scores, that words select (`names.narrow`).

    Of pages and head dims that are not among the default ones, those that the words name.

    Where they fit several, a full name means that one, then the causal ones are meant, then those
    that do not cap scores, then those without trees, then those of the current GPU's architecture,
    unless `archs` says which.

    Raises
    ------
    ValueError
        No variant matches, or several do; the message says what would tell them apart.
    """
    asked = " ".join(words)
    sizes = dict.fromkeys((*DEFAULT_PAGE_SIZES, *pages_named(words)))
    named = {int(head_dim) for head_dim in _HEAD_DIM.findall(asked.lower())} & set(HEAD_DIMS)
    variants = select(
        archs=archs or ["all"],
        head_dims=sorted(named.union(DEFAULT_HEAD_DIMS)),
        page_sizes=[_text(size) for size in sizes],
        masks=["causal", "full"],
        soft_caps=[False, True],
        tree_masks=[False, True],
    )
    exact = [v for v in variants if asked in (v.name, alias_of(v))]
    found = exact or narrow(variants, words)
    found = [v for v in found if v.causal] or found
    found = [v for v in found if not v.soft_cap] or found
    found = [v for v in found if not v.tree_mask] or found
    if not archs:
        found = [v for v in found if v.arch == detected_arch()] or found
    return the_one(found, asked)


def parse_page_size(text: str) -> int | None:
    """Return the page size that `text` states, None for ``"none"``."""
    if text.lower() == "none":
        return None
    if not text.isdecimal():
        raise ValueError(f"page-size={text!r}: must be a whole number, or 'none' for contiguous")
    return int(text)


def _checked_head_dim(head_dim: int) -> int:
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim={head_dim}: allowed are {HEAD_DIMS_TEXT}")
    return head_dim


def _archs(names: Sequence[str] | None) -> list[str]:
    if not names:
        return [detected_arch()]
    return list(ARCHS) if "all" in names else list(dict.fromkeys(names))


def _causals(masks: Sequence[str] | None) -> list[bool]:
    for mask in masks or ():
        if mask not in ("causal", "full"):
            raise ValueError(f"mask={mask!r}: allowed are causal, full")
    return [mask == "causal" for mask in dict.fromkeys(masks or ("causal",))]


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
