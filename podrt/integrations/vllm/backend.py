"""What podrt can serve in vLLM, and what it refuses when the engine starts."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import vllm
from vllm.config import get_current_vllm_config_or_none
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.kv_cache_interface import KVCacheLayout

from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm.builder import PodrtMetadataBuilder
from podrt.integrations.vllm.impl import PodrtImpl
from podrt.integrations.vllm.plugin import NAME
from podrt.spec.types import HEAD_DIMS, HEAD_DIMS_TEXT, DType

#: The release whose interface for backends this is written for.
_VLLM = "0.33"

_LEAST_CAPABILITY = (8, 0)
#: Blocks whose pages every family reads at full speed.
_BLOCK_SIZES = (16, 32, 64, 128, 256)


def require_version(version: str) -> None:
    """Raise UnsupportedConfigError unless vLLM's version has the interface spoken here."""
    if ".".join(version.split(".")[:2]) != _VLLM:
        raise UnsupportedConfigError(
            f"vllm=={version}: podrt's attention backend is written for vLLM {_VLLM}, and other "
            f"releases call backends in other ways; install vllm=={_VLLM}.*, or a podrt that "
            "serves this one"
        )


require_version(vllm.__version__)


class PodrtBackend(AttentionBackend):  # type: ignore[misc]
    """Attention of hybrid batches, prefill and decode in one launch for each layer."""

    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]
    forward_includes_kv_cache_update = PodrtImpl.writes_in_forward

    @staticmethod
    def get_name() -> str:
        """Return the name by which vLLM knows the backend."""
        return NAME

    @staticmethod
    def get_impl_cls() -> type[PodrtImpl]:
        """Return what runs one layer."""
        return PodrtImpl

    @staticmethod
    def get_builder_cls() -> type[PodrtMetadataBuilder]:
        """Return what plans each step."""
        return PodrtMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int]:
        """Return the page sizes that kernels take at full speed; larger blocks are divided."""
        return list(_BLOCK_SIZES)

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Return the head sizes that there are kernels for."""
        return list(HEAD_DIMS)

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the orders of memory that kernels read; all but that of heads outside blocks.

        There the last head may lie further from the first than 32 bits tell.
        """
        return (
            KVCacheLayout.LBNHC,
            KVCacheLayout.LBHNC,
            KVCacheLayout.BLNHC,
            KVCacheLayout.BLHNC,
            KVCacheLayout.BHLNC,
        )

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        """Return whether there are kernels for a GPU."""
        return (capability.major, capability.minor) >= _LEAST_CAPABILITY

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Return True: tokens of a layer may see the last keys alone."""
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        """Return True: softmax may have one more term for each head."""
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """Return True: bits of a request can be its own; `options` says when they are."""
        return True

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Return False: plans are made from the host's query lengths."""
        return False

    @classmethod
    def validate_configuration(cls, *args: Any, **kwargs: Any) -> list[str]:
        """Return why podrt cannot serve a layer; vLLM raises them when it builds the model."""
        reasons: list[str] = super().validate_configuration(*args, **kwargs)
        if reasons:
            config = get_current_vllm_config_or_none()
            model = getattr(getattr(config, "model_config", None), "model", None)
            asked = {name: value for name, value in kwargs.items() if name in _ASKED}
            reasons.append(
                f"model {model!r} asks for {asked}; podrt serves head sizes that are "
                f"{HEAD_DIMS_TEXT}, {' and '.join(get_args(DType))}, caches of the same type in "
                f"blocks that are multiples of {_BLOCK_SIZES[0]}, causal decoders, compute "
                "capability 8.0 and above"
            )
        return reasons


#: What a refusal repeats of the question.
_ASKED = (
    "head_size",
    "dtype",
    "kv_cache_dtype",
    "block_size",
    "attn_type",
    "device_capability",
)
