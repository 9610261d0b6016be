"""`SharedPrefix`: keys with which several requests of a batch begin."""

from __future__ import annotations

from typing import NamedTuple


class SharedPrefix(NamedTuple):
    """Requests of a batch, one after another, that have their first keys in the same pages.

    Attributes
    ----------
    begin, end : int
        Requests ``begin`` to ``end - 1``.
    num_keys : int
        Keys that they share: whole pages, none of which holds a new token of theirs.
    """

    begin: int
    end: int
    num_keys: int
