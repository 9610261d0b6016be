"""The paper's figures 6, 11, 13 and 14 from results of the suite ``paper``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from podrt.bench.contenders import AUTO, SERIAL, STREAMS
from podrt.bench.results import Results
from podrt.bench.summary import CaseSummary, summarise
from podrt.errors import PodrtError

#: Peers drawn beside podrt, where they were measured.
_PEERS = ("fa3 serial", "flashinfer batch_pod")
_FEW_CTAS, _MANY_CTAS = "ctas=2", "ctas=4"
_EVEN, _PROPORTIONAL = "50:50", "proportional"

_PORTABLE, _PORTABLE_SERIAL = "portable", "portable-serial"

Times = dict[str, float]


def plot_figures(results: Results, folder: Path) -> tuple[list[Path], list[str]]:
    """Draw every figure that the results have data for.

    Parameters
    ----------
    results : Results
        Of the suite ``paper``.
    folder : path
        Where the PNG files go; made if need be.

    Returns
    -------
    paths : list of path
        The files.
    skipped : list of str
        Figures without data.

    Raises
    ------
    PodrtError
        There is no matplotlib; names the extra to install.
    """
    new_figure = figure_class()
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarise(results.rows)
    paths, skipped = [], []
    for name, draw in _FIGURES.items():
        figure = new_figure(figsize=(9, 4), layout="constrained")
        cases = [summary for summary in summaries if summary.name.split("/")[0] == name]
        if not draw(figure, cases):
            skipped.append(name)
            continue
        figure.suptitle(f"{name}, {results.environment['gpu']}", fontsize=10)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths, skipped


def figure_class() -> Any:
    """Return matplotlib's Figure; PodrtError without it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PodrtError("figures need matplotlib: pip install 'podrt[plot]'") from error
    return Figure


def _draw_quantisation(figure: Any, cases: Sequence[CaseSummary]) -> bool:
    """Figure 6: time over the chunks of one prompt, a panel for each number of decodes."""
    sizes = sorted({len(summary.case.decode) for summary in cases if summary.times_us})
    panels = figure.subplots(1, max(len(sizes), 1), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=False):
        group = [summary for summary in cases if len(summary.case.decode) == size]
        for name in (AUTO, SERIAL, STREAMS, _PORTABLE, _PORTABLE_SERIAL, *_PEERS):
            points = sorted(
                (_chunk_index(summary), _all_times(summary)[name])
                for summary in group
                if name in _all_times(summary)
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", label=_label(name))
        panel.set(title=f"{size} decodes", xlabel="chunk of the prompt")
    panels[0].set_ylabel("time, us")
    if sizes:
        panels[0].legend(fontsize=8)
    return bool(sizes)


def _draw_sweep(figure: Any, cases: Sequence[CaseSummary]) -> bool:
    """Figure 11: how many batches gain how much, where each side is a fifth of serial or more."""
    panel = figure.subplots()
    drawn = False
    balanced = [summary for summary in cases if summary.is_balanced]
    pairs = [(AUTO, other) for other in (SERIAL, STREAMS, *_PEERS)]
    for name, other in (*pairs, (_PORTABLE, _PORTABLE_SERIAL)):
        times = [_all_times(summary) for summary in balanced]
        gains = sorted(each[other] / each[name] for each in times if {name, other} <= each.keys())
        if gains:
            shares = [100 * (rank + 1) / len(gains) for rank in range(len(gains))]
            label = f"{_label(other)} / {_label(name)} ({len(gains)})"
            panel.step(gains, shares, where="post", label=label)
            drawn = True
    panel.axvline(1.0, color="0.7", linewidth=1)
    panel.set(xlabel="time over time", ylabel="% of the batches")
    if drawn:
        panel.legend(fontsize=8)
    return drawn


def _draw_ctas(figure: Any, cases: Sequence[CaseSummary]) -> bool:
    """Figure 13: two against four CTAs on an SM, over context and number of decodes."""
    ratios = {
        (summary.case.prefill[0][1], len(summary.case.decode)): times[_FEW_CTAS] / times[_MANY_CTAS]
        for summary in cases
        if {_FEW_CTAS, _MANY_CTAS} <= (times := summary.times_us).keys()
    }
    contexts, sizes = (sorted({key[axis] for key in ratios}) for axis in (0, 1))
    if not ratios:
        return False
    grid = [[ratios.get((context, size), float("nan")) for context in contexts] for size in sizes]
    panel = figure.subplots()
    image = panel.imshow(grid, cmap="coolwarm", vmin=0.8, vmax=1.2, origin="lower", aspect="auto")
    for y, line in enumerate(grid):
        for x, ratio in enumerate(line):
            panel.text(x, y, f"{ratio:.2f}", ha="center", va="center", fontsize=8)
    panel.set_xticks(range(len(contexts)), contexts)
    panel.set_yticks(range(len(sizes)), sizes)
    panel.set(xlabel="context, tokens", ylabel="decodes")
    figure.colorbar(image, label="2 CTAs / 4 CTAs on an SM")
    return True


def _draw_ratio(figure: Any, cases: Sequence[CaseSummary]) -> bool:
    """Figure 14: the proportional policy against 50:50, over the number of decodes."""
    panel = figure.subplots()
    heads = sorted({(s.case.num_qo_heads, s.case.num_kv_heads) for s in cases}, reverse=True)
    drawn = False
    for pair in heads:
        points = sorted(
            (len(s.case.decode), s.times_us[_EVEN] / s.times_us[_PROPORTIONAL])
            for s in cases
            if (s.case.num_qo_heads, s.case.num_kv_heads) == pair
            and {_EVEN, _PROPORTIONAL} <= s.times_us.keys()
        )
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", label="{} / {} heads".format(*pair))
            drawn = True
    panel.axhline(1.0, color="0.7", linewidth=1)
    panel.set(xlabel="decodes", ylabel="time of 50:50 / time of proportional")
    if drawn:
        panel.legend(fontsize=8)
    return drawn


def _chunk_index(summary: CaseSummary) -> int:
    q_len, kv_len = summary.case.prefill[0]
    return kv_len // q_len - 1


def _all_times(summary: CaseSummary) -> Times:
    """Times of podrt's contenders and of the peers."""
    peers = {name: us for name, us in summary.rows[0].peers_us.items() if us is not None}
    return {**summary.times_us, **peers}


def _label(name: str) -> str:
    return name if name in _PEERS else f"podrt {name}"


_FIGURES: dict[str, Callable[[Any, Sequence[CaseSummary]], bool]] = {
    "fig6": _draw_quantisation,
    "fig11": _draw_sweep,
    "fig13": _draw_ctas,
    "fig14": _draw_ratio,
}
