import ml_dtypes
import numpy as np
import pytest

from podrt.tensors import checks
from podrt.tensors.view import TensorView, view


def make(
    shape=(2, 4, 64),
    strides=(256, 64, 1),
    *,
    pointer=4096,
    dtype="float16",
    device=0,
    writable=True,
    framework="torch",
    name="q",
):
    return TensorView(name, pointer, shape, strides, dtype, device, writable, framework, None)


def test_good_tensor_passes_every_check():
    tensor = make()
    checks.require_rank(tensor, 3, "[tokens, heads, head_dim]")
    checks.require_dtype(tensor, "bfloat16", "float16")
    checks.require_gpu(tensor)
    checks.require_same_device(tensor, tensor, tensor)
    checks.require_unit_stride(tensor)
    checks.require_alignment(tensor)
    checks.require_writable(tensor)


def test_rank():
    message = r"q: got shape \(2, 4, 64\), expected 4 dimensions \[batch"
    with pytest.raises(ValueError, match=message):
        checks.require_rank(make(), 4, "[batch, length, heads, head_dim]")


@pytest.mark.parametrize(
    ("framework", "got", "wanted", "cast"),
    [
        ("torch", "int64", "int32", "q.to(torch.int32)"),
        ("numpy", "int64", "int32", 'q.astype("int32")'),
        ("cupy", "float32", "bfloat16", "q.astype(ml_dtypes.bfloat16)"),
    ],
)
def test_dtype_says_how_to_cast(framework, got, wanted, cast):
    with pytest.raises(TypeError) as caught:
        checks.require_dtype(make(dtype=got, framework=framework), wanted)
    assert str(caught.value) == f"q: got dtype {got}, expected {wanted}; cast it with {cast}"


def test_dtype_lists_all_that_is_allowed():
    with pytest.raises(TypeError, match="expected bfloat16 or float16;"):
        checks.require_dtype(make(dtype="float32"), "bfloat16", "float16")


def test_gpu():
    with pytest.raises(ValueError, match="q: lies in host memory, expected a tensor on a CUDA GPU"):
        checks.require_gpu(view(np.zeros(2), "q"))


@pytest.mark.parametrize(("device", "place"), [(1, "cuda:1"), (None, "host memory")])
def test_same_device(device, place):
    other = make(name="k_cache", device=device)
    with pytest.raises(ValueError, match=f"k_cache: lies on {place}, expected cuda:0 as for q"):
        checks.require_same_device(make(), make(name="v_cache"), other)


def test_unit_stride():
    with pytest.raises(ValueError, match=r"q: got strides \(512, 128, 2\)"):
        checks.require_unit_stride(make(strides=(512, 128, 2)))


def test_unit_stride_of_a_single_column_does_not_matter():
    checks.require_unit_stride(make(shape=(2, 4, 1), strides=(256, 64, 9)))


def test_alignment_of_the_first_element():
    with pytest.raises(ValueError, match="q: starts at address 0x1008"):
        checks.require_alignment(make(pointer=0x1008))
    checks.require_alignment(make(pointer=0x1008), alignment_bytes=8)


@pytest.mark.parametrize(
    ("dtype", "step"), [("bfloat16", 8), ("float16", 8), ("float32", 4), ("int32", 4)]
)
def test_alignment_of_rows(dtype, step):
    checks.require_alignment(make(strides=(100 * step, step, 1), dtype=dtype))
    with pytest.raises(ValueError, match=f"multiples of {step} for all but the last"):
        checks.require_alignment(make(strides=(100 * step, step + 1, 1), dtype=dtype))


@pytest.mark.parametrize("extent", [0, 1])
def test_alignment_ignores_steps_never_taken(extent):
    checks.require_alignment(make(shape=(extent, 4, 64), strides=(3, 64, 1)))


def test_read_only_output_is_refused():
    with pytest.raises(ValueError, match="out: is read-only"):
        checks.require_writable(make(name="out", writable=False))


def test_broadcast_output_is_refused():
    with pytest.raises(ValueError, match="share memory"):
        checks.require_writable(make(strides=(0, 64, 1)))
    checks.require_writable(make(shape=(1, 4, 64), strides=(0, 64, 1)))


def test_checks_take_real_arrays():
    array = np.zeros((4, 2, 72), ml_dtypes.bfloat16)
    checks.require_unit_stride(view(array[..., :64], "q"))
    with pytest.raises(ValueError, match="last dimension"):
        checks.require_unit_stride(view(array.transpose(2, 1, 0), "q"))
