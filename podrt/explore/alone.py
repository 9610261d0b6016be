"""One variant by itself: batches at the edges of its tiles, and the schedule that launches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, get_args

from podrt.errors import DeviceError, UnsupportedConfigError
from podrt.explore.names import has_pairs
from podrt.gpu.arch import get_arch
from podrt.gpu.device import DeviceInfo, current_device
from podrt.gpu.nominal import H100
from podrt.kernels.families import Variant, family_of
from podrt.kernels.portable.presets import Shape
from podrt.plan import most_decode_tokens
from podrt.policy.policies import Policy
from podrt.policy.schedule import Schedule, Scheduler
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.batch import HybridBatch
from podrt.spec.mask import MOST_TREE_TOKENS, Mask

#: Cap of the scores of layers for variants that have one.
SOFT_CAP = 5.0
#: Keys of a decode that is split on any GPU.
_LONG = 6000
_CHOICES = (None, True, False)


class Alone(NamedTuple):
    """How a variant comes to run.

    Attributes
    ----------
    policy : Policy
        Under which it is chosen.
    schedule : Schedule
        Of the batch: that variant is the only launch.
    """

    policy: Policy
    schedule: Schedule


def layer_for(variant: Variant, num_qo_heads: int, num_kv_heads: int) -> AttentionSpec:
    """Return a layer that a variant is compiled for; scores are capped at `SOFT_CAP`, if so."""
    return make_spec(
        num_qo_heads,
        num_kv_heads,
        variant.head_dim,
        variant.page_size,
        "NHD",
        variant.dtype,
        variant.causal,
        logits_soft_cap=SOFT_CAP if variant.soft_cap else None,
        tree_mask=variant.tree_mask,
        v_head_dim=variant.v_head_dim,
    )


def gpu_for(variant: Variant) -> DeviceInfo:
    """Return the current GPU if it is of a variant's architecture, else one to plan for."""
    try:
        gpu = current_device()
    except (DeviceError, UnsupportedConfigError):
        gpu = H100
    arch = get_arch(variant.arch)
    return gpu if gpu.arch == arch else replace(H100, name=f"a GPU of {arch.name}", arch=arch)


def edge_lengths(variant: Variant, group: int) -> list[tuple[int, int]]:
    """Return ``(q_len, kv_len)`` of requests one below, at and above what a variant cuts at.

    Those are tokens of a prefill tile, keys of the tiles of both sides, pages, and rows of a decode
    tile; one decode is long enough to be split. Only requests of the sides that the variant has.

    Parameters
    ----------
    variant : Variant
    group : int
        Query heads per KV head.
    """
    geometry = family_of(variant).geometry_of(variant, group, 1)
    prefill_keys = getattr(variant, "kv_tile", geometry.prefill_kv_tile)
    page = variant.page_size or 16
    tokens = max(geometry.prefill_rows // group, 1)
    lengths: list[tuple[int, int]] = []
    if variant.has_prefill:
        decodes = most_decode_tokens(group, geometry.decode_rows, Mask(tree=variant.tree_mask))
        most = decodes + 1  # fewer are decodes
        for q_len in (tokens - 1, tokens, tokens + 1, 2 * tokens + 1):
            lengths.append((max(q_len, most), max(q_len, most)))
        for kv_len in _around(prefill_keys, 2 * prefill_keys, 4 * page):
            lengths.append((most, max(kv_len, most)))
        full = max(tokens, most)
        lengths.append((full, full + 3 * prefill_keys - 1))
    if variant.has_decode:
        step = geometry.decode_kv_tile
        lengths += [(1, n) for n in (1, 2, *_around(page, step // 2, step, 2 * step), _LONG)]
        held = geometry.decode_rows // group
        if held > 1:  # several tokens that are still a decode
            lengths += [(held, held), (held, step + held)]
        if variant.tree_mask:  # of one tile and of several
            lengths += [(n, step + n) for n in (5, 33, MOST_TREE_TOKENS)]
    return lengths


def alone(variant: Variant, layer: AttentionSpec, batch: HybridBatch, gpu: DeviceInfo) -> Alone:
    """Return the policy under which a batch is run by a default variant alone.

    Raises
    ------
    ValueError
        No policy does: the variant is none of the default ones, or the batch is of other sides.
    """
    for policy in _policies(variant):
        try:
            schedule = Scheduler(layer, gpu, policy).schedule(batch)
        except UnsupportedConfigError:
            continue
        if schedule.variants == (variant,):
            return Alone(policy, schedule)
    raise ValueError(
        f"{variant.name}: no policy runs this batch with it alone; a variant of form "
        f"{variant.form!r} takes requests of {_SIDES[variant.form]}"
    )


_SIDES = {
    "pod": "both sides",
    "prefill": "several tokens, more than a decode tile holds",
    "decode": "one token, or as many as a decode tile holds",
}


def _policies(variant: Variant) -> Iterator[Policy]:
    if variant.family == "hopper":
        for large in _CHOICES:
            yield Policy(
                family="hopper",
                serial=False,
                decode_rows=variant.decode_rows,
                large_prefill_tile=large,
                head_pairs=None if has_pairs(variant) else False,
            )
    else:
        for shape in get_args(Shape):
            yield Policy(family="portable", serial=False, shape=shape)


def _around(*sizes: int) -> Iterator[int]:
    for size in sizes:
        yield from (size - 1, size, size + 1)
