"""The short way through a write of new keys and the run behind it, both in one call.

An engine that runs layers outside of graphs does both in each of them. By themselves each looks at
its tensors, asks for the stream and for the GPU that is current; here that is done once. What is
unlike the last time is left to the long way, as in `podrt.runtime.repeat`.
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


class WriteAndRun:
    """Writes new keys and values, and runs, over tensors like those of the last run.

    q, k and v are ``[tokens, heads, head_dim]``, or ``[1, heads, tokens, head_dim]`` as models have
    them, which spares views of them.
    """

    def __init__(
        self,
        lock: threading.RLock,
        session: Session,
        repeat: Repeat,
        write: PreparedWrite,
        are_like: Callable[..., bool],
        q: Any,
        k: Any,
        v: Any,
        *,
        has_out: bool,
    ) -> None:
        self._lock, self._session = lock, session
        self._repeat, self._write, self._are_like = repeat, write, are_like
        (_, q_heads, q_dim), (_, kv_heads, k_dim) = _rows_first(q).shape, _rows_first(k).shape
        self._value_dim = v.shape[-1]
        self._q_row, self._q_heads = q_heads * q_dim, q_heads
        self._k_row, self._v_row = kv_heads * k_dim, kv_heads * self._value_dim
        self._has_out, self._has_batch = has_out, q.ndim == 4
        driver = session.driver
        self._ordinal, self._context = driver.ordinal, driver.context
        self._current_stream = current_stream_getter("torch")
        self._current_context = driver.current_context
        self._is_capturing = driver.stream_is_capturing
        self._may_be_captured = repeat.stream not in LEGACY_STREAMS
        self._launch = driver.launch
        self._write_change, self._write_address = write.arguments.change, write.arguments.address
        self._num_tokens, self._write_shape = 1, write.launch_shape(1)  # of the last write

    @classmethod
    def of(
        cls,
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
        return cls(lock, session, repeat, write, are_like, q, k, v, has_out=out is not None)

    def __call__(
        self,
        q: Any,
        k: Any,
        v: Any,
        k_cache: Any,
        v_cache: Any,
        slots: Any,
        out: Any = None,
        sinks: Any = None,
    ) -> Any:
        """Launch both and return out, allocated if None; None if anything is unlike.

        On the current stream, which must be there as long as the plan.
        """
        # In few calls: one in Python costs a microsecond in a layer, when none of it is in the
        # CPU's caches.
        has_out = out is not None
        if has_out is not self._has_out:
            return None
        with self._lock:
            repeat = self._repeat
            planned = repeat.planned
            if (
                self._session.repeatable is not repeat
                or planned is None
                or repeat.workspace.planned is not planned
            ):
                return None
            are_like = self._are_like
            if not (
                are_like(q, k, v, k_cache, v_cache, slots, out)
                if has_out
                else are_like(q, k, v, k_cache, v_cache, slots)
            ):
                return None
            rows, num_tokens = q.numel() // self._q_row, slots.numel()
            if (
                not repeat.least_rows <= rows <= repeat.most_rows
                or not 0 < num_tokens <= rows
                or k.numel() != rows * self._k_row
                or v.numel() != rows * self._v_row
            ):
                return None
            # Streams are told apart by their handles alone: this one must be there as long as
            # the plan.
            stream = self._current_stream(self._ordinal)
            if (
                stream != repeat.stream
                or self._current_context() != self._context
                or (self._may_be_captured and self._is_capturing(stream))
            ):
                return None
            at_sinks = repeat.address_of(sinks) if repeat.has_sinks or sinks is not None else 0
            if at_sinks < 0:
                return None
            if not repeat.has_checked_pages:
                repeat.check_pages(planned)
            if not has_out:
                sizes = rows, self._q_heads, self._value_dim
                out = q.new_empty((1, *sizes) if self._has_batch else sizes)
            elif out.numel() != rows * self._q_heads * self._value_dim:
                return None
            at_q, at_k, at_v, at_out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
            at_keys, at_values = k_cache.data_ptr(), v_cache.data_ptr()
            if (at_q | at_k | at_v | at_out | at_keys | at_values) % ALIGNMENT_BYTES:
                return None
            if num_tokens != self._num_tokens:
                self._num_tokens = num_tokens
                self._write_shape = self._write.launch_shape(num_tokens)
            launch = self._launch
            self._write_change(at_k, at_v, at_keys, at_values, slots.data_ptr(), num_tokens)
            launch(*self._write_shape, stream, self._write_address, 0)
            for point_to, shape, _ in repeat.steps:
                arguments = point_to(at_q, at_keys, at_values, at_out, 0, at_sinks, rows)
                launch(*shape, stream, arguments, 0)
            return out


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
