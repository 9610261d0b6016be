"""Prefixes that requests share, as callers name them or as page numbers show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podrt.spec.attention import AttentionSpec
from podrt.spec.batch import HybridBatch
from podrt.spec.prefixes import checked_prefixes, find_prefixes, sharing
from podrt.tensors.page_table import PageTable

#: What `shared_prefixes` is: prefixes, "find" to look for them, or None for none.
SharedPrefixes = str | Iterable[Sequence[int]] | None

#: Reading so many keys again takes as long as a second launch, and as joining a token: of 8 KV
#: heads of 128 on an H100, where reads of shared pages meet in L2: 2600 keys a us, 3 us and 0.13 us
#: (``bench/results/h100/prefixes.json``, ``prefixes-small.json``).
_LEAST_SAVED_KEYS, _LEAST_SAVED_A_TOKEN = 8192, 384
#: Tokens with more packed rows than one tile has fill several, and reading keys is not what takes
#: their time.
_MOST_ROWS = 128


def require_shareable(layer: AttentionSpec, *, deterministic: bool) -> None:
    """Raise ValueError unless requests of a layer, planned like that, may share keys."""
    if deterministic:
        raise ValueError(
            "shared_prefixes: with deterministic=True results do not depend on what else is in the "
            "batch, and so not on who shares keys; leave one of them out"
        )
    if layer.page_size is None:
        raise ValueError("shared_prefixes: requests share keys in pages; use a paged cache")
    if layer.mask.window_left is not None or layer.mask.tree:
        which = "tree_mask" if layer.mask.tree else f"window_left={layer.mask.window_left}"
        raise ValueError(
            f"shared_prefixes: the layer has {which}, with which tokens do not see all keys of a "
            "prefix; leave it out for this layer"
        )


def with_prefixes(
    batch: HybridBatch,
    table: PageTable | None,
    asked: str | Iterable[Sequence[int]],
    layer: AttentionSpec,
    *,
    deterministic: bool,
    most_tokens: int | None = None,
    most_prefixes: int | None = None,
) -> HybridBatch:
    """Return a batch in which keys that its requests share are there once.

    Parameters
    ----------
    batch : HybridBatch
        As read.
    table : PageTable or None
        Its page table.
    asked : iterable of (begin, end, num_keys), or "find"
        What a caller says.
    layer : AttentionSpec
        What it is for.
    deterministic : bool
        As of its `Policy`.
    most_tokens, most_prefixes : int, optional
        Bounds of what is looked for: query tokens of a request, and prefixes.

    Raises
    ------
    ValueError
        A prefix does not fit the batch; there are no pages, or those to be compared lie on a GPU;
        the layer has a window or trees, or its plans are deterministic, with which none can be
        shared.
    """
    require_shareable(layer, deterministic=deterministic)
    assert table is not None  # as pages are needed
    if not isinstance(asked, str):
        return sharing(batch, checked_prefixes(batch, asked))
    if asked != "find":
        raise ValueError(f'shared_prefixes={asked!r}: allowed are "find", prefixes, or None')
    if table.host_values is None:
        raise ValueError(
            f'shared_prefixes="find": page numbers are compared in host memory, but '
            f"{table.tensor.name} lies on {table.tensor.place}; say which requests share"
        )
    held = max(_MOST_ROWS // layer.group, 1)
    found = find_prefixes(
        batch,
        table.equal_first_pages,
        least_saved_keys=_LEAST_SAVED_KEYS,
        least_saved_a_token=_LEAST_SAVED_A_TOKEN,
        most_tokens=held if most_tokens is None else most_tokens,
        most_prefixes=most_prefixes,
    )
    return sharing(batch, found)
