"""One plan for each step, which all layers of a cache group share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder

from podrt.attention import HybridAttention
from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm import serving
from podrt.integrations.vllm.attention import describe_attention, reserved_attention
from podrt.integrations.vllm.group import LayerShape, limits_of, model_of, shapes_of
from podrt.integrations.vllm.options import is_deterministic, policy_of
from podrt.runtime.write_and_run import WriteAndRun


@dataclass(frozen=True, eq=False, slots=True)
class PodrtMetadata:
    """What layers need to know of a step.

    Attributes
    ----------
    builder : PodrtMetadataBuilder
        Whose attentions have the step's plan.
    step : int
        Number of the step among the builder's.
    slot_mapping : int64 tensor [tokens]
        Where in the cache new keys and values go.
    decodes_only : bool
        Whether a graph that is being captured is for decodes alone.
    """

    builder: PodrtMetadataBuilder
    step: int
    slot_mapping: Any
    decodes_only: bool = False

    def attention_of(self, shape: LayerShape) -> HybridAttention:
        """Return what runs layers of a shape, planned for this step.

        Raises
        ------
        RuntimeError
            A later step has been planned meanwhile, whose results a run would give.
        """
        if self.step != self.builder.step:
            raise RuntimeError(
                f"attention of step {self.step} was asked for after step {self.builder.step} had "
                "been planned; podrt keeps one plan at a time for each metadata builder"
            )
        self.builder.runs += 1
        return self.builder.attentions[shape]


class _Step(NamedTuple):
    """What a step was planned with."""

    qo_indptr: bytes
    kv_lens: npt.NDArray[np.int32]
    places: tuple[int, ...]  # of what is read at every run: block table and exact lengths

    @classmethod
    def of(cls, qo_indptr: Any, kv_lens: Any, table: Any, seq_lens: Any) -> _Step:
        places = table.data_ptr(), *table.shape, table.stride(0), seq_lens.data_ptr()
        return cls(qo_indptr.tobytes(), kv_lens, places)

    def growth_since(self, last: _Step | None) -> int:
        """Return how many keys more all requests have than in the last step; 0 if others have."""
        if last is None or self.qo_indptr != last.qo_indptr or self.places != last.places:
            return 0
        more = self.kv_lens - last.kv_lens
        num_keys = more.item(0) if more.size else 0
        return num_keys if num_keys > 0 and (more == num_keys).all() else 0


class PodrtMetadataBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Plans the steps of the layers of one cache group.

    Graphs are captured once for each number of tokens and replayed for any batch: what `build`
    plans reaches them, mixed batches included.

    Attributes
    ----------
    attentions : dict of LayerShape to HybridAttention
        One for each shape that there is among the layers.
    step, runs : int
        Steps planned so far, and layers run or captured.
    short_ways : dict of LayerShape to WriteAndRun or None
        What does again what the last layer of a shape did outside of graphs.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.ALWAYS

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if vllm_config.parallel_config.use_ubatching:
            raise UnsupportedConfigError(
                f"model {model_of(vllm_config)!r}: enable_dbo and ubatch_size have layers run on "
                "two streams at once, for which podrt's backend has no memory; leave them out"
            )
        self.limits, self.step, self.runs = limits_of(vllm_config), 0, 0
        self._last: _Step | None = None
        self._deterministic = is_deterministic(vllm_config)
        self.attentions = {
            shape: reserved_attention(shape, kv_cache_spec.block_size, vllm_config, device)
            for shape in shapes_of(vllm_config, layer_names)
        }
        self.short_ways: dict[LayerShape, WriteAndRun | None] = dict.fromkeys(self.attentions)
        serving.add(self)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> PodrtMetadata:
        """Plan a step, on the current stream."""
        common = common_attn_metadata
        if common.causal is not True:
            raise UnsupportedConfigError(
                f"model {model_of(self.vllm_config)!r}: causal={common.causal!r}; podrt's backend "
                "serves causal attention alone"
            )
        num_requests = common.num_reqs
        qo_indptr = common.query_start_loc_cpu.numpy()[: num_requests + 1]
        table = common.block_table_tensor[:num_requests]
        # On the host they may be too long: drafts count as accepted, dummies as of any length.
        kv_lens = self._most_keys(common, num_requests)
        step = _Step.of(qo_indptr, kv_lens, table, common.seq_lens)
        num_keys, self._last = step.growth_since(self._last), None
        for attention in self.attentions.values():
            if not (num_keys and attention.grow(num_keys)):
                exact = common.seq_lens
                attention.plan(qo_indptr, kv_lens, block_table=table, device_kv_lens=exact)
        self._last = step
        self.step += 1
        return PodrtMetadata(self, self.step, common.slot_mapping)

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> PodrtMetadata:
        """Plan a step whose graph will be captured, or replayed by ranks that have no requests."""
        longest = common_attn_metadata.max_query_len
        only = all(attention.are_decodes(longest) for attention in self.attentions.values())
        return replace(self.build(0, common_attn_metadata), decodes_only=only)

    def describe(self) -> list[dict[str, Any]]:
        """Return the entries of `podrt.integrations.vllm.status`."""
        return [
            {
                "layers": len(self.layer_names),
                **shape._asdict(),
                **describe_attention(attention),
                "policy": policy_of(self.vllm_config),
                "deterministic": self._deterministic,
                "limits": self.limits._asdict(),
                "steps": self.step,
                "runs": self.runs,
            }
            for shape, attention in self.attentions.items()
        ]

    def _most_keys(self, common: Any, num_requests: int) -> Any:
        most = self.limits.max_kv_len
        bounds = common.seq_lens_cpu_upper_bound
        if bounds is None:  # some drafters know the longest alone, which is another request's
            longest = most if self._deterministic else min(common.max_seq_len, most)
            return np.full(num_requests, longest, np.int32)
        return np.minimum(bounds.numpy()[:num_requests], most)
