"""From an entry of a suite file to its cases.

Every entry has a ``name``, ``heads`` ``[[num_qo_heads, num_kv_heads], ...]``, and may have
``head_dims`` (128), ``dtype`` (bfloat16), ``page_sizes`` (an int or ``"contiguous"`` each),
``policies``, ``v_head_dim``, ``window_left``, ``logits_soft_cap``, ``sinks`` (true or false), and
``when``: ``"subset"`` or ``"full"`` for an entry of only one of the two. The three kinds differ in
where their lengths come from:

``[[group]]``
    ``points``: each has ``prefill`` ``[[q_len, kv_len], ...]``, ``decode``
    ``{requests = N, kv_len = L}``, or both.
``[[sweep]]``
    Chunks of one prompt beside decodes, as POD-Attention's scripts make them: ``decodes`` lists the
    numbers of decodes for each context length, ``chunks`` the chunk lengths (0 for the whole
    context), ``chunk_indices`` which chunks of the prompt (negative from its end; all if absent),
    and ``decode_kv_offset`` what a decode's keys differ from the context by.
``[[trace]]``
    ``budgets``, ``batches`` and ``max_kv_tokens`` of a chunked-prefill schedule of every trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from podrt.bench.case import Case
from podrt.spec.attention import heads_tag
from podrt.workloads.chunked_prefill import Request, hybrid_steps, read_trace, sample_trace

Entry = Mapping[str, Any]

_OF_LAYERS = ("v_head_dim", "window_left", "logits_soft_cap", "sinks")
_COMMON_KEYS = {
    *("name", "when", "heads", "head_dims", "dtype", "page_sizes", "policies"),
    *_OF_LAYERS,
}
_OWN_KEYS = {
    "group": {"points"},
    "sweep": {"chunks", "chunk_indices", "decodes", "decode_kv_offset"},
    "trace": {"budgets", "batches", "max_kv_tokens"},
}


class _Point(NamedTuple):
    """Lengths of a batch; `label` is what tells it from its neighbours, where lengths do not."""

    prefill: tuple[tuple[int, int], ...]
    decode: tuple[int, ...]
    label: str = ""


def expand(kind: str, entry: Entry, *, full: bool, trace_dir: Path | None) -> list[Case]:
    """Return the cases of one entry; none if it belongs to the other of subset and full.

    Raises
    ------
    KeyError, TypeError, ValueError
        Something is missing, unknown or malformed, or podrt has no such layer.
    """
    unknown = entry.keys() - _COMMON_KEYS - _OWN_KEYS[kind]
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)}")
    when = entry.get("when", "always")
    if when not in ("always", "subset", "full"):
        raise ValueError(f'when={when!r}: allowed are "subset" and "full"')
    if when != "always" and (when == "full") != full:
        return []
    points: dict[str, Callable[[], Iterator[_Point]]] = {
        "group": lambda: _group_points(entry),
        "sweep": lambda: _sweep_points(entry),
        "trace": lambda: _trace_points(entry, trace_dir),
    }
    cases = _cases(entry, list(points[kind]()))
    for case in cases:
        case.spec()  # which raises where no kernel could measure it
    return cases


def _cases(entry: Entry, points: list[_Point]) -> list[Case]:
    layers = product(
        entry["heads"], entry.get("head_dims", [128]), entry.get("page_sizes", ["contiguous"])
    )
    return [
        Case(
            name=f"{entry['name']}/{_layer_name(*layer, entry)}/{_lengths_name(point)}",
            num_qo_heads=layer[0][0],
            num_kv_heads=layer[0][1],
            head_dim=layer[1],
            dtype=entry.get("dtype", "bfloat16"),
            page_size=None if layer[2] == "contiguous" else int(layer[2]),
            prefill=point.prefill,
            decode=point.decode,
            policies=tuple(entry.get("policies", ())),
            **{name: entry[name] for name in _OF_LAYERS if name in entry},
        )
        for layer in layers
        for point in points
    ]


def _layer_name(heads: list[int], head_dim: int, page_size: int | str, entry: Entry) -> str:
    pages = "contiguous" if page_size == "contiguous" else f"page{page_size}"
    tag = heads_tag(head_dim, entry.get("v_head_dim"))
    return f"{heads[0]}-{heads[1]} {tag} {pages}{_scores_name(entry)}"


def _scores_name(entry: Entry) -> str:
    """Return what an entry asks of scores, such as ``" window 4095, sinks"``."""
    parts = []
    if entry.get("window_left") is not None:
        parts.append(f"window {entry['window_left']}")
    if entry.get("logits_soft_cap") is not None:
        parts.append(f"cap {entry['logits_soft_cap']:g}")
    if entry.get("sinks"):
        parts.append("sinks")
    return " " + ", ".join(parts) if parts else ""


def _lengths_name(point: _Point) -> str:
    if point.label:
        return point.label
    parts = [f"{q_len}@{kv_len}" for q_len, kv_len in point.prefill]
    if point.decode:
        parts.append(f"{len(point.decode)}x{point.decode[0]}")
    return " + ".join(parts)


def _group_points(entry: Entry) -> Iterator[_Point]:
    for point in entry["points"]:
        unknown = point.keys() - {"prefill", "decode"}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)} of a point")
        prefill = tuple((int(q_len), int(kv_len)) for q_len, kv_len in point.get("prefill", ()))
        decode = point.get("decode", {"requests": 0, "kv_len": 0})
        yield _Point(prefill, (int(decode["kv_len"]),) * int(decode["requests"]))


def _sweep_points(entry: Entry) -> Iterator[_Point]:
    offset = entry.get("decode_kv_offset", 0)
    for text, batch_sizes in entry["decodes"].items():
        context = int(text)
        for length, batch_size in product(entry["chunks"], batch_sizes):
            chunk = length or context
            for index in _chunk_indices(entry, context // chunk):
                prefill = (chunk, chunk * (index + 1))
                yield _Point((prefill,), (context + offset,) * batch_size)


def _chunk_indices(entry: Entry, num_chunks: int) -> list[int]:
    """Return the wanted chunks of a prompt that has `num_chunks`, each once and in order."""
    wanted = entry.get("chunk_indices", range(num_chunks))
    indices = {index if index >= 0 else index + num_chunks for index in wanted}
    return sorted(index for index in indices if 0 <= index < num_chunks)


def _trace_points(entry: Entry, trace_dir: Path | None) -> Iterator[_Point]:
    for (name, requests), budget in product(_traces(trace_dir), entry["budgets"]):
        steps = hybrid_steps(
            requests, budget=budget, max_kv_tokens=entry["max_kv_tokens"], count=entry["batches"]
        )
        for number, step in enumerate(steps):
            lengths = step.lengths
            yield _Point(
                prefill=tuple(lengths[step.num_decodes :]),
                decode=tuple(kv_len for _, kv_len in lengths[: step.num_decodes]),
                label=f"{name} budget {budget} #{number}",
            )


def _traces(trace_dir: Path | None) -> list[tuple[str, list[Request]]]:
    if trace_dir is None:
        return [("sample", sample_trace())]
    paths = sorted(trace_dir.glob("*.csv"))
    if not paths:
        raise ValueError(f"no CSV file in {trace_dir}")
    return [(path.stem, read_trace(path)) for path in paths]
