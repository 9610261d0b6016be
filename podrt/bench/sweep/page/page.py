"""The page itself: one HTML file of bounded size that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from podrt.bench.sweep.page.code import KernelCode

#: Largest size of a page; beyond it parts are left out, and the page says which.
MAX_BYTES = 2_500_000


def page_of(
    contents: Mapping[str, Any],
    codes: Sequence[KernelCode],
    timeline: Mapping[str, Any] | None = None,
    *,
    title: str,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Return the page.

    What is beyond `max_bytes` is left out, with a note: SASS first, then sources, the timeline, and
    the single samples of the times.

    Parameters
    ----------
    contents : mapping
        Of `podrt.bench.sweep.page.contents.contents_of`.
    codes : sequence of KernelCode
    timeline : mapping, optional
        Of `podrt.bench.sweep.page.trace.read_trace`.
    title : str
    max_bytes : int

    Raises
    ------
    ValueError
        Records alone are beyond `max_bytes`.
    """
    data: dict[str, Any] = {
        **contents,
        "title": title,
        "kernels": [asdict(code) for code in codes],
        "timeline": timeline,
        "notes": [],
    }
    for shorten in (None, _without_sass, _without_sources, _without_timeline, _without_samples):
        if shorten is not None:
            shorten(data)
        page = _rendered(data, title)
        if len(page.encode()) <= max_bytes:
            return page
    raise ValueError(
        f"sweep: its records alone make a page of {len(page.encode())} bytes, allowed are "
        f"{max_bytes}; report a sweep of fewer batches or variants"
    )


def _without_sass(data: dict[str, Any]) -> None:
    _without_text(data, "sass", "SASS")


def _without_sources(data: dict[str, Any]) -> None:
    _without_text(data, "source", "sources")


def _without_text(data: dict[str, Any], field: str, words: str) -> None:
    if any(kernel[field] is not None for kernel in data["kernels"]):
        data["kernels"] = [{**kernel, field: None} for kernel in data["kernels"]]
        _note(data, f"{words} of the kernels: podrt explore show NAME prints them")


def _without_timeline(data: dict[str, Any]) -> None:
    if data["timeline"] is not None:
        data["timeline"] = None
        _note(data, "the timeline: Perfetto shows it")


def _without_samples(data: dict[str, Any]) -> None:
    data["gpus"] = [
        {**gpu, "results": [{**each, "samples_us": None} for each in gpu["results"]]}
        for gpu in data["gpus"]
    ]
    _note(data, "the samples of each time: the file of records has them")


def _note(data: dict[str, Any], what: str) -> None:
    data["notes"].append(f"Left out, to keep this file small: {what}.")


def _rendered(data: Mapping[str, Any], title: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("page.html.jinja").render(data=data, title=title)
