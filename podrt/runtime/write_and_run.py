"""The short way through a write of new keys and the run behind it, both in one call.

An engine that runs layers outside of graphs does both in each of them. By themselves each looks at
its tensors, asks for the stream and for the GPU that is current; here that is done once. What is
unlike the last time is left to the long way, as in `podrt.runtime.repeat`.

Between two layers a model runs so much else that none of this is in the CPU's caches. What takes
time then is how many functions and objects there are: a call in Python takes a microsecond or two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from podrt.runtime.cache_writer import PreparedWrite
from podrt.runtime.repeat import Repeat
from podrt.runtime.session import Session
from podrt.tensors.cache_write import view_write_tensors
from podrt.tensors.checks import ALIGNMENT_BYTES
from podrt.tensors.likeness import torch_guard
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.streams import LEGACY_STREAMS, PER_THREAD_STREAM, current_stream_getter

#: ``(q, k, v, k_cache, v_cache, slots, out=None, sinks=None)`` writes new keys and values and runs,
#: over tensors like those of the last run, on the current stream, which must be there as long as
#: the plan. Returns out, allocated if None. Does nothing and returns None if anything is unlike.
#: q, k and v are ``[tokens, heads, head_dim]``, or ``[1, heads, tokens, head_dim]`` as models have
#: them, which spares views of them.
WriteAndRun = Callable[..., Any]


def write_and_run_like(
    lock: threading.RLock,
    session: Session,
    q: Any,
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    slots: Any,
    out: Any,
) -> WriteAndRun | None:
    """Return what repeats a write and the last run, which were over these tensors.

    None if the run cannot be repeated or was over others, or PyTorch compares no tensors.
    """
    repeat = session.repeatable
    if repeat is None or repeat.stream == PER_THREAD_STREAM or not k_cache.numel():
        return None
    if session.scheduler.spec.kv_layout != "NHD" or not _lie_as(
        repeat.tensors, _rows_first(q), k_cache, v_cache, out
    ):
        return None
    examples = [q, k, v, k_cache, v_cache, slots]
    axes = [_rows_axis(q), _rows_axis(k), _rows_axis(v), None, None, 0]
    if out is not None:
        examples.append(out)
        axes.append(0)
    if q.shape[_rows_axis(q)] == 1:  # a row may have strides that would be wrong for more
        axes = [None] * len(axes)
    are_like = torch_guard(examples, axes)
    if are_like is None:
        return None
    new = _rows_first(k), _rows_first(v)
    tensors = view_write_tensors(*new, k_cache, v_cache, slots, "NHD", repeat.stream)
    write = PreparedWrite(session.driver, tensors, "NHD")
    has_out, has_batch = out is not None, q.ndim == 4
    return _short_way(lock, session, repeat, write, are_like, has_out=has_out, has_batch=has_batch)


def _short_way(
    lock: threading.RLock,
    session: Session,
    repeat: Repeat,
    write: PreparedWrite,
    are_like: Callable[..., bool],
    *,
    has_out: bool,
    has_batch: bool,
) -> WriteAndRun:
    """Return what launches a write and a run over tensors that `are_like`.

    A function with all that it needs at hand, and not an object with a method: a tenth faster.
    """
    _, q_heads, q_dim = repeat.tensors.q.shape
    _, _, kv_heads, k_dim = repeat.tensors.k_cache.shape
    value_dim = repeat.tensors.out.shape[2]
    q_row, out_row = q_heads * q_dim, q_heads * value_dim
    k_row, v_row = kv_heads * k_dim, kv_heads * value_dim
    driver, workspace, its_stream = session.driver, repeat.workspace, repeat.stream
    ordinal, context, launch = driver.ordinal, driver.context, driver.launch
    current_stream, current_context = current_stream_getter("torch"), driver.current_context
    may_be_captured, is_capturing = its_stream not in LEGACY_STREAMS, driver.stream_is_capturing
    point_write_to, write_arguments = write.arguments.change, write.arguments.address
    last_num_tokens, write_shape = 1, write.launch_shape(1)

    def short_way(
        q: Any,
        k: Any,
        v: Any,
        k_cache: Any,
        v_cache: Any,
        slots: Any,
        out: Any = None,
        sinks: Any = None,
    ) -> Any:
        nonlocal last_num_tokens, write_shape
        if (out is not None) is not has_out:
            return None
        with lock:
            planned = repeat.planned
            if (
                session.repeatable is not repeat
                or planned is None
                or workspace.planned is not planned
            ):
                return None
            if not (
                are_like(q, k, v, k_cache, v_cache, slots, out)
                if has_out
                else are_like(q, k, v, k_cache, v_cache, slots)
            ):
                return None
            rows, num_tokens = q.numel() // q_row, slots.numel()
            if (
                not repeat.least_rows <= rows <= repeat.most_rows
                or not 0 < num_tokens <= rows
                or k.numel() != rows * k_row
                or v.numel() != rows * v_row
            ):
                return None
            # Streams are told apart by their handles alone: this one must be there as long as
            # the plan.
            if (
                current_stream(ordinal) != its_stream
                or current_context() != context
                or (may_be_captured and is_capturing(its_stream))
            ):
                return None
            at_sinks = repeat.address_of(sinks) if repeat.has_sinks or sinks is not None else 0
            if at_sinks < 0:
                return None
            if not repeat.has_checked_pages:
                repeat.check_pages(planned)
            if not has_out:
                sizes = rows, q_heads, value_dim
                out = q.new_empty((1, *sizes) if has_batch else sizes)
            elif out.numel() != rows * out_row:
                return None
            at_q, at_k, at_v, at_out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
            at_keys, at_values = k_cache.data_ptr(), v_cache.data_ptr()
            if (at_q | at_k | at_v | at_out | at_keys | at_values) % ALIGNMENT_BYTES:
                return None
            if num_tokens != last_num_tokens:
                last_num_tokens, write_shape = num_tokens, write.launch_shape(num_tokens)
            point_write_to(at_k, at_v, at_keys, at_values, slots.data_ptr(), num_tokens)
            launch(*write_shape, its_stream, write_arguments, 0)
            for point_to, shape, _ in repeat.steps:
                arguments = point_to(at_q, at_keys, at_values, at_out, 0, at_sinks, rows)
                launch(*shape, its_stream, arguments, 0)
            return out

    return short_way


def _lie_as(last: RunTensors, q: Any, k_cache: Any, v_cache: Any, out: Any) -> bool:
    """Whether tensors lie as those of the last run, which another thread may have called."""
    given = [(last.q, q), (last.k_cache, k_cache), (last.v_cache, v_cache)]
    if out is not None:
        given.append((last.out, out))
    elif last.out.strides != (last.out.shape[1] * last.out.shape[2], last.out.shape[2], 1):
        return False  # outputs that are allocated lie row by row
    return all(was.strides == now.stride() and was.shape == now.shape for was, now in given)


def _rows_axis(tensor: Any) -> int | None:
    return 2 if tensor.ndim == 4 else 0


def _rows_first(tensor: Any) -> Any:
    return tensor[0].transpose(0, 1) if tensor.ndim == 4 else tensor
