"""Other packages' attention on the same case: what one would pick instead of podrt.

They are optional: none is imported before a run that wants it. What one cannot do is an error with
its text, never a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

from podrt.bench.tensors import CaseTensors
from podrt.bench.timing import Enqueue, Work
from podrt.gpu.device import load_cupy

#: Plans one contender and returns what enqueues it on PyTorch's current stream.
Maker = Callable[[], Enqueue]


class Peer(NamedTuple):
    """A package and where its contenders are made.

    Attributes
    ----------
    distribution, module : str
        What to install, and what to import.
    makers : str
        Module of podrt with ``makers(tensors) -> {contender: Maker}``.
    """

    distribution: str
    module: str
    makers: str


PEERS: dict[str, Peer] = {
    "fa3": Peer("fa3-fwd", "fa3_fwd_interface", "podrt.bench.peer_fa3"),
    "flashinfer": Peer("flashinfer-python", "flashinfer", "podrt.bench.peer_flashinfer"),
}


def installed_peers() -> list[str]:
    """Return the names of the peers that could be imported."""
    return [name for name, peer in PEERS.items() if find_spec(peer.module) and find_spec("torch")]


def parse_peers(text: str | None) -> list[str]:
    """Read the option ``--peers``: names with commas, ``none``, or None for what is installed."""
    if text is None:
        return installed_peers()
    if text == "none":
        return []
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"peers={text!r}: allowed are none, or some of {','.join(PEERS)}")
    return names


def peer_versions(names: list[str]) -> dict[str, str | None]:
    """Return the installed version of each peer, and of PyTorch if there is any."""
    return {
        name: _version(PEERS[name].distribution if name in PEERS else name)
        for name in [*names, *(["torch"] if names else [])]
    }


def peer_works(names: list[str], tensors: CaseTensors) -> tuple[dict[str, Work], dict[str, str]]:
    """Return the contenders of the peers for a case, and why others are missing."""
    works: dict[str, Work] = {}
    errors: dict[str, str] = {}
    for name in names:
        if not tensors.case.is_plain:
            errors[name] = (
                "not asked: windows, caps, sinks and narrower values are podrt's alone here"
            )
            continue
        try:
            makers = import_module(PEERS[name].makers).makers(tensors)
        except Exception as error:  # other people's code: whatever it raises is the reason
            errors[name] = error_text(error)
            continue
        made, failed = make_works(name, makers)
        works |= made
        errors |= failed
    return works, errors


def error_text(error: Exception) -> str:
    """Return an error as one line of a results file."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def torch_view(array: Any) -> Any:
    """Return a CuPy array of 16-bit floats as a torch tensor on the same memory."""
    import torch

    dtype = torch.float16 if array.dtype == "float16" else torch.bfloat16
    return torch.from_dlpack(array.view("int16")).view(dtype)


def make_works(peer: str, makers: Mapping[str, Maker]) -> tuple[dict[str, Work], dict[str, str]]:
    """Return the contenders of one peer, and why others could not be made."""
    works: dict[str, Work] = {}
    errors: dict[str, str] = {}
    for contender, make in makers.items():
        name = f"{peer} {contender}"
        try:
            works[name] = Work(_on_current_stream(make()), _capture)
        except Exception as error:  # as above
            errors[name] = error_text(error)
    return works, errors


def _on_current_stream(enqueue: Enqueue) -> Enqueue:
    """Make PyTorch's stream CuPy's while something is enqueued."""

    def enqueue_there() -> None:
        import torch

        with torch.cuda.stream(_torch_stream()):
            enqueue()

    return enqueue_there


def _capture(enqueue: Enqueue) -> Enqueue:
    """Capture with PyTorch, whose allocator then keeps the graph's memory for the graph."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_torch_stream()):
        enqueue()
    return _on_current_stream(graph.replay)


def _torch_stream() -> Any:
    import torch

    return torch.cuda.ExternalStream(load_cupy().cuda.get_current_stream().ptr)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
