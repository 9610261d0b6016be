"""One engine's continuous batching on podrt: a plan for each step, and a run for each layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from podrt.attention import HybridAttention
from podrt.cache_write import write_cache
from podrt.errors import UnsupportedConfigError
from podrt.integrations.transformers.failures import StepError
from podrt.integrations.transformers.layers import Layer
from podrt.integrations.transformers.tables import PageTables
from podrt.kernels.families import Variant
from podrt.policy.policies import Policy
from podrt.runtime.driver import give_back_unused
from podrt.runtime.write_and_run import WriteAndRun
from podrt.spec.batch import HybridBatch
from podrt.tensors.page_table import PageTable, make_batch

_FULL_ATTENTION = "full_attention"
#: Prefixes of a step that graphs have room for; those that save most are taken.
_MOST_PREFIXES = 16
_log = logging.getLogger("podrt")


@dataclass
class Record:
    """What ran since `enable`. Outlives engines, whose caches it does not keep alive.

    Attributes
    ----------
    steps : int
        Steps planned, those of warming up included.
    kernels : tuple of str
        Names of the kernels that run the step planned last.
    """

    steps: int = 0
    kernels: tuple[str, ...] = ()


class Engine:
    """Attention over the paged cache of one `ContinuousBatchProcessor`.

    Parameters
    ----------
    processor : ContinuousBatchProcessor
        Whose cache is read where it lies.
    layers : dict of int to Layer
        Its model's attention layers, of all ranks together.
    policy : str or Policy
        As `podrt.HybridAttention`.
    record : Record
        Where steps are counted.
    shared_prefixes : bool
        Read keys that decodes share once for all of them, in layers without a window.

    Attributes
    ----------
    layers : dict of int to Layer
        Those of this rank.
    attentions : dict of Layer to HybridAttention or HostAttention
        Planned for the step under way; layers that are alike share one.
    checked : dict of int to tuple
        What each layer asked for when its call was last checked against its plan.
    pages : dict of int to (tensor, tensor)
        Keys and values of each layer, ``[pages, page_size, KV heads, head_dim]``.
    short_ways : dict of int to WriteAndRun or None
        What does as `attend` for each layer, over tensors like those of the last one.
    num_steps : int
        Steps planned so far, those of warming up included.

    Raises
    ------
    UnsupportedConfigError
        The cache holds more than full attention.
    """

    def __init__(
        self,
        processor: Any,
        layers: Mapping[int, Layer],
        policy: str | Policy,
        record: Record,
        *,
        shared_prefixes: bool = False,
    ) -> None:
        allocators = processor.cache.cache_allocators
        if list(allocators) != [_FULL_ATTENTION]:
            raise UnsupportedConfigError(
                f"the cache holds {', '.join(allocators)}; podrt serves {_FULL_ATTENTION} alone"
            )
        self._allocator = allocator = allocators[_FULL_ATTENTION]
        page_size = allocator.tokens_per_page
        self.layers = {
            index: _of_rank(layer, allocator.num_key_value_heads) for index, layer in layers.items()
        }
        device = processor.model_device
        self.attentions = {
            layer: layer.attention(device, policy, page_size=page_size)
            for layer in dict.fromkeys(self.layers.values())
        }
        self._sharing = {
            layer
            for layer, attention in self.attentions.items()
            if shared_prefixes
            and layer.window_left is None
            and isinstance(attention, HybridAttention)
        }
        self._page_size = page_size
        self._q_lens: list[int] = []  # of the last step, as those that follow
        self._kv_lens: list[int] = []
        self._kv_indptr: Any = None
        self._batch = HybridBatch.empty(page_size)
        self._tables = PageTables(
            page_size,
            allocator.block_physical_stride // page_size,
            -(-processor.cache.max_tokens_read // page_size),
        )
        self.pages = _alike(allocator._kv_page_views)
        self._record = record
        self._variants: tuple[Variant, ...] | None = None
        self._of_layer = {index: self.attentions[layer] for index, layer in self.layers.items()}
        self.short_ways: dict[int, WriteAndRun | None] = dict.fromkeys(self.layers)
        self.checked: dict[int, tuple[Any, ...]] = {}
        self._num_tokens = self.num_steps = 0
        if processor.model_runner.pad_inputs:
            self._reserve(processor)

    def plan(self, states: Sequence[Any], stream: Any) -> None:
        """Plan a step of some `FutureRequestState`, whose positions count their new tokens.

        `stream` is the one that computes the step; None in host memory.
        """
        last, self._kv_lens = self._kv_lens, []  # nothing grows from a step that failed
        names = [state.state.request_id for state in states]
        table = self._tables.of(names, self._allocator.block_table)
        q_lens = [state.query_length for state in states]
        kv_lens = [state.state.position_offset for state in states]
        self._tables.require_room(kv_lens)
        have_grown = q_lens == self._q_lens and kv_lens == [length + 1 for length in last]
        if not (have_grown and self._grow_all(stream)):
            batch = self._batch_of(q_lens, kv_lens, table)
            self._plan_all(batch, table, stream)
            self._batch, self._q_lens, self._kv_indptr = batch, q_lens, table.kv_indptr
            self._num_tokens = batch.total_tokens
            self._note()
        self._kv_lens = kv_lens
        if not self.num_steps:
            _log.info("podrt runs attention of continuous batching: %s", self._record.kernels)
        self._record.steps += 1
        self.num_steps += 1

    def _grow_all(self, stream: Any) -> bool:
        """Have what is planned grow by a key a request; say whether that could be."""
        changed = self._tables.changed
        if changed is None or self._sharing:  # with a page more requests may share a prefix
            return False
        # What some have grown by is planned anew where others refuse.
        return all(
            isinstance(attention, HybridAttention)
            and attention.grow(new_pages=changed, stream=stream)
            for attention in self.attentions.values()
        )

    def _batch_of(self, q_lens: list[int], kv_lens: list[int], table: PageTable) -> HybridBatch:
        """Return a step's batch; of decodes mostly that of the last step, but for their keys."""
        if q_lens == self._q_lens and table.kv_indptr is self._kv_indptr:
            return self._batch.with_keys(kv_lens)
        qo_indptr = np.array([0, *q_lens], np.int32).cumsum(dtype=np.int32)
        return make_batch(qo_indptr, np.array(kv_lens, np.int32), table, self._page_size)

    def _plan_all(self, batch: HybridBatch, table: PageTable, stream: Any) -> None:
        """Plan a batch for all attentions, and leave them as they were if one refuses it."""
        prepared: list[tuple[Any, Any]] = []  # each adopts what it prepared
        for layer, attention in self.attentions.items():
            plan = attention.prepare(batch, table, stream=stream, **self._more_of(layer))
            prepared.append((attention, plan))
        for attention, plan in prepared:
            attention.adopt(plan)

    def _more_of(self, layer: Layer) -> dict[str, Any]:
        return {"shared_prefixes": "find"} if layer in self._sharing else {}

    def attend(
        self, layer_idx: int, query: Any, key: Any, value: Any, slots: Any, sinks: Any = None
    ) -> Any:
        """Write a layer's new keys and return its attention ``[1, tokens, heads, head_dim]``.

        `query`, `key` and `value` are ``[1, heads, tokens, head_dim]``, the rest is as `write` and
        `run` have it.
        """
        attention = self._of_layer[layer_idx]
        try:
            self.write(layer_idx, key[0].transpose(0, 1), value[0].transpose(0, 1), slots)
        except Exception as error:
            raise StepError(f"podrt could not write keys of layer {layer_idx}: {error}") from error
        out = self.run(layer_idx, query[0].transpose(0, 1), sinks)
        if isinstance(attention, HybridAttention):
            tensors = query, key, value, *self.pages[layer_idx], slots
            short_way = attention.write_and_run_like(*tensors)
            alike = (index for index, other in self._of_layer.items() if other is attention)
            self.short_ways.update(dict.fromkeys(alike, short_way))
        return out[None]

    def write(self, layer_idx: int, k: Any, v: Any, slots: Any) -> None:
        """Write a layer's new keys and values to the cache, both in one launch.

        `k` and `v` are ``[tokens, KV heads, head_dim]``; int64 `slots` say which token of the
        cache each of them is.
        """
        write_cache(k, v, *self.pages[layer_idx], slots)

    def run(self, layer_idx: int, q: Any, sinks: Any = None) -> Any:
        """Return attention ``[tokens, heads, head_dim]`` of a layer's queries of that shape.

        Rows beyond the batch are padding, and hold anything.
        """
        k_pages, v_pages = self.pages[layer_idx]
        attention = self._of_layer[layer_idx]
        if isinstance(attention, HybridAttention):
            return attention.run(q, k_pages, v_pages, sinks=sinks)
        out = torch.zeros_like(q)
        rows = slice(0, self._num_tokens)
        attention.run(q[rows], k_pages, v_pages, out=out[rows], sinks=sinks)
        return out

    def _reserve(self, processor: Any) -> None:
        """Make ready for graphs; attentions take turns, so they share memory.

        It is PyTorch's, which the engine gives back when it ends. What else an engine reserved goes
        to CuPy's pool, to the part of a stream that is gone with it: the next one empties that.
        """
        limits = (
            processor.cb_config.max_requests_per_batch,
            processor.cache.max_batch_tokens,
            processor.cache.max_tokens_read,
        )
        on_gpu = [
            (attention, {"max_prefixes": _MOST_PREFIXES * (layer in self._sharing)})
            for layer, attention in self.attentions.items()
            if isinstance(attention, HybridAttention)
        ]
        if not on_gpu:
            return
        device, stream = processor.model_device, processor.inputs_and_outputs.compute_stream
        give_back_unused(device.index)
        nbytes = max(attention.workspace_bytes(*limits, **more) for attention, more in on_gpu)
        with torch.cuda.stream(stream):
            shared = torch.empty(nbytes, dtype=torch.uint8, device=device)
        for attention, more in on_gpu:
            attention.reserve(*limits, workspace=shared, stream=stream, **more)

    def _note(self) -> None:
        """Record kernels; names are made where they are others than those of the last step."""
        variants: list[Variant] = []
        for attention in self.attentions.values():
            if not isinstance(attention, HybridAttention):
                self._record.kernels = ("reference in host memory",)
                return
            variants += attention.variants
        if tuple(variants) != self._variants:
            self._variants = tuple(variants)
            self._record.kernels = tuple(dict.fromkeys(variant.name for variant in variants))


def _of_rank(layer: Layer, num_kv_heads: int) -> Layer:
    """Return what one rank of tensor parallelism has of a layer, given its KV heads."""
    ranks = layer.num_kv_heads // num_kv_heads
    return layer._replace(num_qo_heads=layer.num_qo_heads // ranks, num_kv_heads=num_kv_heads)


def _alike(views: Mapping[int, tuple[Any, Any]]) -> dict[int, tuple[Any, Any]]:
    """Return the layers' pages, each with as many as all have.

    They are windows into one memory that begin a page after one another and all end with it. Alike,
    their launches differ in addresses alone.
    """
    num_pages = min(len(k_pages) for k_pages, _ in views.values())
    return {layer: (k[:num_pages], v[:num_pages]) for layer, (k, v) in views.items()}
