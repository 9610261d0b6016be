"""Bad input of both front doors is answered by name, before any launch."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from attention_support import QO_INDPTR, Batch

import podrt
from podrt.errors import UnsupportedConfigError


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def shifted(array: np.ndarray, index: int | tuple[int, ...], by: int) -> np.ndarray:
    changed = array.copy()
    changed[index] += by
    return changed


GOOD = Batch()

#: Changed arguments, the error, and words that it must have.
BAD_INPUT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "q of rank 2": ({"q": GOOD.q[0]}, ValueError, "q: got shape (8, 64)"),
    "q with too few tokens": ({"q": GOOD.q[1:]}, ValueError, "q: got shape (29, 8, 64), expected"),
    "q on no device": ({"q": [1.0]}, TypeError, "q: got list"),
    "caches of rank 3": ({"k_cache": GOOD.k[0]}, ValueError, "k_cache: got shape"),
    "v of rank 3": ({"v_cache": GOOD.v[0]}, ValueError, "v_cache: got shape"),
    "v of another shape": (
        {"v_cache": np.concatenate([GOOD.v, GOOD.v])},
        ValueError,
        "v_cache: got shape",
    ),
    "float32": (
        {"q": GOOD.q.astype(np.float32)},
        TypeError,
        "q: got dtype float32, expected bfloat16 or float16; cast it with q.astype(",
    ),
    "stream for work on the host": ({"stream": 7}, ValueError, "stream=7: orders work on a GPU"),
    "caches of another dtype": (
        {"k_cache": GOOD.k.astype(ml_dtypes.bfloat16)},
        TypeError,
        "k_cache: got dtype bfloat16, expected float16",
    ),
    "heads that are no multiple": (
        {"q": GOOD.q[:, :7]},
        ValueError,
        "num_qo_heads=7: must be a multiple of num_kv_heads=2",
    ),
    "head_dim 24": (
        {"q": GOOD.q[:, :, :24], "k_cache": GOOD.k[..., :24], "v_cache": GOOD.v[..., :24]},
        UnsupportedConfigError,
        "head_dim=24: allowed are multiples of 8 from 32 to 256",
    ),
    "values wider than keys": (
        {"q": GOOD.q[..., :32], "k_cache": GOOD.k[..., :32]},
        UnsupportedConfigError,
        "v_head_dim=64: values may be narrower than the keys of head_dim=32, but not wider",
    ),
    "values of 24": (
        {"v_cache": GOOD.v[..., :24]},
        UnsupportedConfigError,
        "v_head_dim=24: allowed are multiples of 8 from 32 to 256",
    ),
    "an output as wide as keys that are wider than values": (
        {"v_cache": GOOD.v[..., :32], "out": np.empty_like(GOOD.q)},
        ValueError,
        "expected (30, 8, 32) [total_tokens, num_qo_heads, v_head_dim]",
    ),
    "negative length": (
        {"kv_lens": shifted(GOOD.kv_lens, 1, -40)},
        ValueError,
        "kv_lens[1] is -7",
    ),
    "length beyond the cache": (
        {"kv_lens": shifted(GOOD.kv_lens, 0, 15)},
        ValueError,
        "k_cache has 5 rows of 64 tokens; the batch needs at least 5 rows of 65",
    ),
    "too few rows": (
        {"k_cache": GOOD.k[:4], "v_cache": GOOD.v[:4]},
        ValueError,
        "k_cache has 4 rows",
    ),
    "NaN scale": ({"sm_scale": math.nan}, ValueError, "sm_scale=nan"),
    "falling qo_indptr": (
        {"qo_indptr": shifted(QO_INDPTR, 1, 99)},
        ValueError,
        "qo_indptr falls from 100 at 1",
    ),
    "qo_indptr not from 0": ({"qo_indptr": QO_INDPTR + i32(1)}, ValueError, "qo_indptr[0] is 1"),
    "qo_indptr too short": ({"qo_indptr": QO_INDPTR[:-1]}, ValueError, "qo_indptr has 5 entries"),
    "int64 qo_indptr": (
        {"qo_indptr": QO_INDPTR.astype(np.int64)},
        TypeError,
        "qo_indptr: got dtype int64, expected int32",
    ),
    "int64 kv_lens": (
        {"kv_lens": GOOD.kv_lens.astype(np.int64)},
        TypeError,
        "kv_lens: got dtype int64, expected int32",
    ),
    "floats for lengths": ({"kv_lens": [1.5] * 5}, TypeError, "kv_lens: got elements of type"),
    "unknown layout": (
        {"kv_layout": "DNH"},
        UnsupportedConfigError,
        "kv_layout='DNH': allowed are ('NHD', 'HND')",
    ),
    "unknown policy": ({"policy": "fast"}, UnsupportedConfigError, "policy='fast': allowed are"),
    "unknown backend": (
        {"backend": "triton"},
        UnsupportedConfigError,
        "backend='triton': allowed are ('auto', 'cuda', 'reference')",
    ),
    "causal as a number": ({"causal": 1}, TypeError, "causal=1: expected True or False"),
    "host tensors for a GPU": ({"backend": "cuda"}, ValueError, "q: lies in host memory"),
    "out of another shape": ({"out": GOOD.q[1:]}, ValueError, "out: got shape"),
    "out of another dtype": ({"out": GOOD.q.astype(np.float32)}, TypeError, "out: got dtype"),
    "lse of another dtype": ({"lse": GOOD.q[:, :, 0]}, TypeError, "lse: got dtype float16"),
    "half a page table": (
        {"kv_indptr": i32(0, 1, 2, 3, 4, 5)},
        ValueError,
        "pass block_table, or kv_indptr with kv_indices; got kv_indptr",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_the_argument(case: str) -> None:
    changes, error, message = BAD_INPUT[case]
    arguments: dict[str, Any] = {
        "q": GOOD.q,
        "k_cache": GOOD.k,
        "v_cache": GOOD.v,
        "qo_indptr": QO_INDPTR,
        "kv_lens": GOOD.kv_lens,
    }
    with pytest.raises(error, match=re.escape(message)):
        podrt.hybrid_attention(**(arguments | changes))


#: As above, over pages.
BAD_PAGES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "length beyond the block table": (
        {"block_table": GOOD.block_table[:, :3]},
        ValueError,
        "kv_lens[0] is 50; block_table gives request 0 3 pages of 16 tokens, room for 48",
    ),
    "too few rows": (
        {"block_table": GOOD.block_table[:4]},
        ValueError,
        "block_table has shape (4, 4); expected (5, max_pages)",
    ),
    "int64 block table": (
        {"block_table": GOOD.block_table.astype(np.int64)},
        TypeError,
        "block_table: got dtype int64, expected int32",
    ),
    "block table of rank 1": (
        {"block_table": GOOD.block_table[0]},
        ValueError,
        "block_table: got shape (4,), expected 2 dimensions",
    ),
    "both kinds of table": (
        {"block_table": GOOD.block_table, **GOOD.ragged_pages},
        ValueError,
        "got block_table, kv_indptr, kv_indices",
    ),
    "falling kv_indptr": (
        GOOD.ragged_pages | {"kv_indptr": shifted(GOOD.ragged_pages["kv_indptr"], 2, 5)},
        ValueError,
        "kv_indptr falls",
    ),
    "kv_indptr beyond kv_indices": (
        GOOD.ragged_pages | {"kv_indices": GOOD.ragged_pages["kv_indices"][:-1]},
        ValueError,
        "kv_indices has",
    ),
    "length beyond kv_indptr": (
        GOOD.ragged_pages | {"kv_lens": shifted(GOOD.kv_lens, 3, 10)},
        ValueError,
        "kv_lens[3] is 17; kv_indptr gives request 3 1 pages of 16 tokens, room for 16",
    ),
    "page beyond the cache": (
        {"block_table": shifted(GOOD.block_table, (0, 3), 99)},
        ValueError,
        "block_table: page 3 of request 0 is ",
    ),
    "negative page": (
        GOOD.ragged_pages | {"kv_indices": shifted(GOOD.ragged_pages["kv_indices"], 0, -99)},
        ValueError,
        "kv_indices: page 0 of request 0 is -",
    ),
    "int64 kv_indices": (
        GOOD.ragged_pages | {"kv_indices": GOOD.ragged_pages["kv_indices"].astype(np.int64)},
        TypeError,
        "kv_indices: got dtype int64, expected int32",
    ),
}


@pytest.mark.parametrize("case", BAD_PAGES)
def test_bad_pages_name_the_argument(case: str) -> None:
    changes, error, message = BAD_PAGES[case]
    arguments: dict[str, Any] = {"qo_indptr": QO_INDPTR, "kv_lens": GOOD.kv_lens} | changes
    with pytest.raises(error, match=re.escape(message)):
        podrt.hybrid_attention(GOOD.q, GOOD.k_pages, GOOD.v_pages, **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_qo_heads": 7}, ValueError, "num_qo_heads=7: must be a multiple of num_kv_heads=2"),
        ({"head_dim": 100}, UnsupportedConfigError, "head_dim=100: allowed are"),
        ({"v_head_dim": 72}, UnsupportedConfigError, "v_head_dim=72: values may be narrower"),
        ({"page_size": -1}, ValueError, "page_size=-1"),
        ({"kv_layout": "HDN"}, UnsupportedConfigError, "kv_layout='HDN'"),
        ({"dtype": "int8"}, UnsupportedConfigError, "dtype='int8'"),
        ({"sm_scale": math.nan}, ValueError, "sm_scale=nan"),
        ({"window_left": -1}, ValueError, "window_left=-1: must be at least 0"),
        ({"logits_soft_cap": 0.0}, ValueError, "logits_soft_cap=0.0: must be finite and greater"),
        ({"tree_mask": 1}, TypeError, "tree_mask=1: expected True or False"),
        (
            {"tree_mask": True, "causal": False},
            UnsupportedConfigError,
            "tree_mask=True with causal=False",
        ),
        ({"device": -1}, ValueError, "device=-1: must be at least 0"),
        (
            {"device": "cuda:0"},
            TypeError,
            "device='cuda:0': expected a CUDA device number, or None",
        ),
        ({"device": True}, TypeError, "device=True: expected a CUDA device number"),
        ({"device": 0.0}, TypeError, "device=0.0: expected a CUDA device number"),
        ({"sm_scale": "0.5"}, TypeError, "sm_scale='0.5'"),
        ({"policy": "2:0"}, UnsupportedConfigError, "policy='2:0'"),
        ({"policy": {"serial": True}}, UnsupportedConfigError, "policy={'serial': True}: allowed"),
    ],
)
def test_layer_arguments_are_checked_at_construction(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64} | changes
    with pytest.raises(error, match=re.escape(message)):
        podrt.HybridAttention(**arguments)
