"""The kernel that writes new keys and values to the pages of a cache: config, source, arguments."""

from __future__ import annotations

from typing import NamedTuple

from podrt.jit import KernelSource
from podrt.kernels.argument_block import ArgumentBlock
from podrt.kernels.structs import Field, render_struct, struct_dtype
from podrt.spec.attention import heads_tag
from podrt.tensors.cache_write import WriteTensors

#: Elements that a thread copies, 16 bytes.
VECTOR = 8
THREADS = 256

#: Arguments in memory order. Strides are in elements.
PARAMS = (
    Field("const u16*", "k", "[tokens, num_kv_heads, head_dim]"),
    Field("const u16*", "v", "as k, of v_head_dim"),
    Field("u16*", "k_cache", "[pages, page_size, num_kv_heads, head_dim]"),
    Field("u16*", "v_cache", "as k_cache, of v_head_dim"),
    Field("const i64*", "slots", "[num_tokens]"),
    Field("i64", "num_tokens", ""),
    Field("i64", "num_slots", "of the cache"),
    Field("i64", "k_stride_token", ""),
    Field("i64", "k_stride_head", ""),
    Field("i64", "v_stride_token", ""),
    Field("i64", "v_stride_head", ""),
    Field("i64", "k_cache_stride_page", ""),
    Field("i64", "k_cache_stride_token", ""),
    Field("i64", "k_cache_stride_head", ""),
    Field("i64", "v_cache_stride_page", ""),
    Field("i64", "v_cache_stride_token", ""),
    Field("i64", "v_cache_stride_head", ""),
    Field("int", "num_kv_heads", ""),
)
PARAMS_DTYPE = struct_dtype(PARAMS)
#: Five addresses and the number of tokens.
_CHANGING = 6


class CacheWriteConfig(NamedTuple):
    """One variant of the kernel. Elements of 16 bits are copied, whatever their type.

    Attributes
    ----------
    arch : str
        For example ``"sm_90a"``.
    head_dim : int
        Elements of a head of the keys.
    page_size : int
        Tokens of a page.
    v_head_dim : int or None
        Elements of a head of the values; None for as many.
    """

    arch: str
    head_dim: int
    page_size: int
    v_head_dim: int | None = None
    threads: int = THREADS

    @property
    def value_dim(self) -> int:
        """Elements of a head of the values."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def name(self) -> str:
        """Readable name, different for different variants."""
        heads = heads_tag(self.head_dim, self.v_head_dim)
        return f"cache_write_{self.arch}_{heads}_page{self.page_size}"


def source_of(config: CacheWriteConfig) -> KernelSource:
    """Render the CUDA C++ source of a variant."""
    params = render_struct("Params", PARAMS)
    return KernelSource.rendered("cache/write.cu.jinja", config, params_struct=params)


def ctas_of(num_tokens: int, num_kv_heads: int, elements: int) -> int:
    """Return the grid of a launch for so many tokens, with heads of so many elements of k and v."""
    vectors = num_tokens * num_kv_heads * (elements // VECTOR)
    return -(-vectors // THREADS)


class CacheWriteArguments(ArgumentBlock):
    """Arguments over tensors of one layout.

    A launch changes k, v, k_cache, v_cache, slots and num_tokens.
    """

    def __init__(self, tensors: WriteTensors) -> None:
        strides: dict[str, int] = {}
        for name in ("k", "v"):
            token, head, _ = getattr(tensors, name).strides
            strides |= {f"{name}_stride_token": token, f"{name}_stride_head": head}
            page, token, head, _ = getattr(tensors, f"{name}_cache").strides
            strides |= {
                f"{name}_cache_stride_page": page,
                f"{name}_cache_stride_token": token,
                f"{name}_cache_stride_head": head,
            }
        pages, page_size, num_kv_heads, _ = tensors.k_cache.shape
        super().__init__(
            PARAMS, _CHANGING, num_slots=pages * page_size, num_kv_heads=num_kv_heads, **strides
        )
