"""`make_spec`: every argument of an attention layer is checked once, by name."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from podrt.errors import UnsupportedConfigError
from podrt.spec.attention import AttentionSpec, make_spec
from podrt.spec.mask import Mask

ARGUMENTS: dict[str, Any] = {
    "num_qo_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "page_size": 16,
    "kv_layout": "NHD",
    "dtype": "bfloat16",
    "causal": True,
    "sm_scale": None,
}


def layer_of(**changes: Any) -> AttentionSpec:
    return make_spec(**(ARGUMENTS | changes))


def test_defaults_and_group() -> None:
    layer = layer_of()
    assert layer.group == 4
    assert layer.sm_scale == 128**-0.5
    assert layer_of(num_qo_heads=71, num_kv_heads=1).group == 71
    assert layer_of(page_size=None).page_size is None


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_sizes_may_be_integers_of_numpy(integer: type[np.integer[Any]]) -> None:
    sizes = {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 16}
    layer = layer_of(**{name: integer(size) for name, size in sizes.items()})
    assert layer == layer_of()
    assert {type(getattr(layer, name)) for name in sizes} == {int}


def test_causal_may_be_a_bool_of_numpy() -> None:
    assert layer_of(causal=np.bool_(False)).mask == Mask(causal=False)


def test_a_window_is_of_the_mask_and_no_part_of_the_kernel() -> None:
    layer = layer_of(window_left=np.int64(4096))
    assert layer.mask == Mask(True, 4096)
    assert type(layer.mask.window_left) is int
    assert layer.kernel == layer_of().kernel
    assert layer_of(window_left=0).mask.window_left == 0


def test_a_kernel_knows_whether_scores_are_capped_and_not_by_what() -> None:
    assert layer_of().logits_soft_cap is None
    layer = layer_of(logits_soft_cap=50)
    assert layer.logits_soft_cap == 50.0
    assert layer.kernel == layer_of(logits_soft_cap=np.float32(0.5)).kernel
    assert layer.kernel != layer_of().kernel


def test_values_may_be_narrower_than_keys() -> None:
    layer = layer_of(head_dim=192, v_head_dim=np.int64(128))
    assert (layer.v_head_dim, layer.value_dim) == (128, 128)
    assert type(layer.v_head_dim) is int
    assert layer.sm_scale == 192**-0.5
    assert layer.kernel != layer_of(head_dim=192).kernel
    assert layer.kernel.heads_tag == "d192v128"


def test_values_as_wide_as_keys_are_no_other_layer() -> None:
    assert layer_of(v_head_dim=128) == layer_of()
    assert (layer_of().value_dim, layer_of().kernel.heads_tag) == (128, "d128")


@pytest.mark.parametrize("scale", [0.5, 1, np.float32(0.25), 1e-30, 1e8, 1e-38])
def test_scale_may_be_any_positive_number(scale: float) -> None:
    assert layer_of(sm_scale=scale).sm_scale == float(scale)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float16", "float16"),
        (np.float16, "float16"),
        (np.dtype(np.float16), "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        # PyTorch's dtypes are objects that print as "torch.bfloat16".
        (type("dtype", (), {"__str__": lambda self: "torch.bfloat16"})(), "bfloat16"),
        (SimpleNamespace(__name__="float16"), "float16"),
    ],
    ids=str,
)
def test_dtype_of_any_framework(dtype: object, name: str) -> None:
    assert layer_of(dtype=dtype).dtype == name


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_qo_heads": 0}, ValueError, "num_qo_heads=0: must be at least 1"),
        ({"num_kv_heads": -8}, ValueError, "num_kv_heads=-8: must be at least 1"),
        ({"num_qo_heads": 32.0}, TypeError, "num_qo_heads=32.0: expected an int"),
        ({"num_kv_heads": True}, TypeError, "num_kv_heads=True: expected an int"),
        ({"num_kv_heads": np.True_}, TypeError, "expected an int"),
        ({"num_kv_heads": np.array([8, 8])}, TypeError, "expected an int"),
        ({"num_kv_heads": np.float64(8)}, TypeError, "expected an int"),
        (
            {"num_qo_heads": 12},
            ValueError,
            "num_qo_heads=12: must be a multiple of num_kv_heads=8",
        ),
        ({"num_qo_heads": 4}, ValueError, "num_qo_heads=4: must be a multiple"),
        (
            {"head_dim": 264},
            UnsupportedConfigError,
            "head_dim=264: allowed are multiples of 8 from 32",
        ),
        ({"head_dim": 64.0}, TypeError, "head_dim=64.0: expected an int"),
        ({"v_head_dim": 64.0}, TypeError, "v_head_dim=64.0: expected an int"),
        ({"v_head_dim": 0}, ValueError, "v_head_dim=0: must be at least 1"),
        ({"v_head_dim": 100}, UnsupportedConfigError, "v_head_dim=100: allowed are multiples of 8"),
        (
            {"v_head_dim": 136},
            UnsupportedConfigError,
            "v_head_dim=136: values may be narrower than the keys of head_dim=128, but not wider",
        ),
        ({"page_size": 0}, ValueError, "page_size=0: must be at least 1"),
        ({"page_size": "16"}, TypeError, "page_size='16': expected an int"),
        (
            {"kv_layout": "nhd"},
            UnsupportedConfigError,
            "kv_layout='nhd': allowed are ('NHD', 'HND')",
        ),
        (
            {"dtype": "float32"},
            UnsupportedConfigError,
            "dtype='float32': allowed are ('bfloat16', 'float16')",
        ),
        ({"dtype": np.float64}, UnsupportedConfigError, "allowed are ('bfloat16', 'float16')"),
        ({"causal": 1}, TypeError, "causal=1: expected True or False"),
        ({"sm_scale": math.nan}, ValueError, "sm_scale=nan: must be finite and greater than 0"),
        ({"sm_scale": math.inf}, ValueError, "sm_scale=inf: must be finite"),
        # Finite in float64 alone; the kernels multiply by sm_scale * log2(e) in float32.
        ({"sm_scale": 1e39}, ValueError, "sm_scale=1e+39: must be from 1e-38 to 1e+08"),
        ({"sm_scale": 2e8}, ValueError, "sm_scale=200000000.0: must be from"),
        ({"sm_scale": 1e-46}, ValueError, "sm_scale=1e-46: must be from"),
        ({"sm_scale": 0}, ValueError, "sm_scale=0: must be finite and greater than 0"),
        ({"sm_scale": -1.0}, ValueError, "sm_scale=-1.0: must be finite and greater than 0"),
        ({"sm_scale": "big"}, TypeError, "sm_scale='big': expected a number or None"),
        ({"sm_scale": "0.5"}, TypeError, "sm_scale='0.5': expected a number or None"),
        ({"sm_scale": True}, TypeError, "sm_scale=True: expected a number or None"),
        ({"sm_scale": [1]}, TypeError, "sm_scale=[1]: expected a number or None"),
        ({"window_left": -1}, ValueError, "window_left=-1: must be at least 0"),
        ({"window_left": 4096.0}, TypeError, "window_left=4096.0: expected an int or None"),
        ({"window_left": True}, TypeError, "window_left=True: expected an int or None"),
        ({"logits_soft_cap": 0}, ValueError, "logits_soft_cap=0: must be finite and greater"),
        ({"logits_soft_cap": -30.0}, ValueError, "logits_soft_cap=-30.0: must be finite"),
        ({"logits_soft_cap": math.inf}, ValueError, "logits_soft_cap=inf: must be finite"),
        ({"logits_soft_cap": 1e9}, ValueError, "from 1e-20 to 1e+08; pass None for no cap"),
        ({"logits_soft_cap": "50"}, TypeError, "logits_soft_cap='50': expected a number or None"),
    ],
)
def test_refusal_names_argument_value_and_what_is_allowed(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        layer_of(**changes)
