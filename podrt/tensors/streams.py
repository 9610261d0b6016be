"""Any framework's CUDA stream as the handle that the driver knows it by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from podrt.gpu.device import load_cupy
from podrt.tensors.frameworks import Framework, framework_of

#: Handles of the legacy default stream: the null handle, and ``cudaStreamLegacy``.
LEGACY_STREAMS = (0, 1)
#: Handle of the default stream of which every thread has another one, ``cudaStreamPerThread``.
PER_THREAD_STREAM = 2

_MAX_HANDLE = 2**64 - 1


def resolve_stream(stream: object, like: object = None) -> int:
    """Return the handle (``cudaStream_t``) of the stream that work is to be ordered on.

    Parameters
    ----------
    stream : int, CuPy stream, torch.cuda.Stream, anything with ``__cuda_stream__``, or None
        None is the current stream of the framework that `like` comes from, on the device of
        `like`: PyTorch's or CuPy's. Other frameworks have none that can be asked for, and get the
        legacy default stream, handle 0.
    like : tensor, optional
        The tensor that decides what None means.

    Raises
    ------
    TypeError
        `stream` is none of these.
    ValueError
        `stream` is an int that cannot be a handle, or follows an unknown version of the protocol.
    """
    if stream is None:
        return _current_stream(like)
    if isinstance(stream, int) and not isinstance(stream, bool):
        return _checked_handle(stream)
    if hasattr(stream, "cuda_stream"):
        return _checked_handle(int(stream.cuda_stream))
    if hasattr(stream, "__cuda_stream__"):
        return _protocol_handle(stream)
    raise TypeError(
        f"stream: got {type(stream).__name__}, expected None, an int handle, a CuPy stream, "
        "a torch.cuda.Stream or an object with __cuda_stream__"
    )


def cupy_stream(handle: int) -> Any:
    """Return the stream as a CuPy stream, which does not own it."""
    return load_cupy().cuda.Stream.from_external(_Handle(handle))


class _Handle:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.handle)


def current_stream_of(framework: Framework, device: int) -> int:
    """Return the handle of a framework's current stream on a GPU: PyTorch's or CuPy's.

    Other frameworks have none that can be asked for, and get the legacy default stream, handle 0.
    """
    return current_stream_getter(framework)(device)


def current_stream_getter(framework: Framework) -> Callable[[int], int]:
    """Return what `current_stream_of` asks, for whoever asks often."""
    if framework == "torch":
        return _torch_stream_of()
    if framework == "cupy":
        cuda = load_cupy().cuda
        return lambda device: int(cuda.get_current_stream(device).ptr)
    return lambda device: 0


def _current_stream(like: Any) -> int:
    framework = framework_of(like)
    if framework == "torch" and like.is_cuda:
        return current_stream_of(framework, like.get_device())
    if framework == "cupy":
        return current_stream_of(framework, like.data.device_id)
    return 0


@cache
def _torch_stream_of() -> Callable[[int], int]:
    """Return what asks PyTorch: its raw getter takes a tenth of a microsecond, a Stream two."""
    import torch

    raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


def _protocol_handle(stream: Any) -> int:
    # A method by the protocol; some early adopters made it a property.
    protocol = stream.__cuda_stream__
    version, handle = protocol() if callable(protocol) else protocol
    if version != 0:
        raise ValueError(f"stream: __cuda_stream__ of version {version}; known is version 0")
    return _checked_handle(int(handle))


def _checked_handle(handle: int) -> int:
    if not 0 <= handle <= _MAX_HANDLE:
        raise ValueError(f"stream={handle}: a handle lies between 0 and 2**64 - 1")
    return handle
