"""`merge_states`: partial attentions over disjoint keys into one, on a GPU or on the host."""

from __future__ import annotations

from typing import Any

from podrt.reference.merge import reference_merge
from podrt.runtime.state_merger import merger_of
from podrt.tensors.frameworks import framework_of
from podrt.tensors.host import to_numpy
from podrt.tensors.merge_states import view_states, with_outputs
from podrt.tensors.view import view


def merge_states(
    outs: Any,
    lses: Any,
    *,
    out: Any = None,
    lse: Any = None,
    dtype: Any = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """Merge attention over disjoint sets of keys into attention over all of them.

    A state is what `podrt.HybridAttention.run` returns with ``return_lse=True``, or any other
    attention that tells its log-sum-exp. One launch for up to 64 states, and merged states are
    states again. Returns without waiting for the GPU, and may be captured into a graph. States in
    host memory are merged with NumPy, in float64.

    Parameters
    ----------
    outs : [states, tokens, num_heads, head_dim], or a list of [tokens, num_heads, head_dim]
        Normalised outputs of at least one state, bfloat16, float16 or float32; any strides but the
        last. The tensors of a list may lie unlike each other.
    lses : float32 [states, tokens, num_heads], or a list of [tokens, num_heads]
        Their log-sum-exps, natural log; any strides. One of -inf or +inf (which FlashAttention
        says where there are no keys) tells that the state has seen no key: its output, NaN
        included, does not count and is not read. NaN makes out and lse NaN.
    out : [tokens, num_heads, head_dim], optional
        Where the result goes, in any of the three element types; allocated in the framework of
        `outs` if None. It may be the output of one of the states, which is then overwritten, but
        otherwise shares no memory with them.
    lse : float32 [tokens, num_heads], optional
        Where its log-sum-exp goes; likewise.
    dtype : {"bfloat16", "float16", "float32"}, or a framework's dtype, optional
        Element type of `out`; that of `outs` if None.
    stream : int, CuPy or torch stream, or anything with ``__cuda_stream__``, optional
        The current stream of the framework of `outs` if None; for states on a GPU.

    Returns
    -------
    out, lse
        In the framework of `outs`; 0 and -inf where no state has seen a key.

    Raises
    ------
    ValueError, TypeError, UnsupportedConfigError
        A tensor does not fit the others; nothing has been launched or written.
    RuntimeError
        Memory would have to be allocated while the stream is being captured.
    DeviceError, CompileError
        There is no usable GPU, or the kernel did not compile.
    """
    device = _device_of(outs)
    if device is not None:
        return merger_of(device).merge(outs, lses, out, lse, dtype, stream)
    if stream is not None:
        raise ValueError(
            f"stream={stream!r}: orders work on a GPU, but this call merges on the host; "
            "leave it out"
        )
    tensors = with_outputs(view_states(outs, lses), out, lse, dtype)
    exact, exact_lse = reference_merge(
        [to_numpy(each) for each in tensors.outs], [to_numpy(each) for each in tensors.lses]
    )
    to_numpy(tensors.out)[...] = exact
    to_numpy(tensors.lse)[...] = exact_lse
    return tensors.results()


def _device_of(outs: Any) -> int | None:
    """Return the number of the GPU that the first state lies on; None for host memory."""
    if isinstance(outs, list | tuple):
        if not outs:
            return None  # refused with the other checks
        outs = outs[0]
    if framework_of(outs) == "torch":
        return int(outs.get_device()) if outs.is_cuda else None
    return view(outs, "outs").device
