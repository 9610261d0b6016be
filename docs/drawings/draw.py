"""Draws how the kernels work: ``python docs/drawings/draw.py`` writes the SVG files beside it."""

from __future__ import annotations

from pathlib import Path

from svg import Drawing

FOLDER = Path(__file__).resolve().parent


def work() -> Drawing:
    """From a batch to units of work, and to the SMs that draw them."""
    d = Drawing(880, 372, "Requests become tiles, tiles become units, SMs draw units of both sides")
    d.text(20, 22, "a batch: queries (rows) over keys", bold=True)
    _prefill_tiles(d, 20, 60, 250, 128)
    d.text(20, 52, "a prefill chunk: tiles of 128 packed rows", fill="dim", size=12)
    d.text(20, 228, "decodes: one tile each, keys cut into pieces", fill="dim", size=12)
    for row, (keys, pieces) in enumerate(((250, 3), (180, 2), (232, 3), (90, 1))):
        for piece in range(pieces):
            width = keys / pieces
            d.rect(20 + piece * width, 236 + row * 20, width - 2, 12, "decode", round_px=2)
    d.text(20, 330, "keys →", fill="dim", size=12)

    d.text(372, 22, "two queues, longest units first", bold=True)
    for side, x, widths in (
        ("prefill", 372, (96, 96, 88, 80, 72, 64, 40, 24)),
        ("decode", 494, (84, 84, 84, 78, 78, 62, 40, 30)),
    ):
        d.text(x, 52, side, fill="dim", size=12)
        for row, width in enumerate(widths):
            d.rect(x, 60 + row * 20, width, 14, side, round_px=2)
    d.text(372, 242, "A unit is a tile, a range of keys", fill="dim", size=12)
    d.text(372, 258, "and one KV head.", fill="dim", size=12)
    for row in (104, 254):
        d.line([(288, row), (358, row)], arrow=True)
    d.text(323, 96, "plan", fill="dim", size=12, anchor="middle")
    d.text(323, 246, "plan", fill="dim", size=12, anchor="middle")

    d.text(694, 22, "SMs draw from both", bold=True)
    for sm in range(4):
        y = 44 + sm * 62
        d.rect(694, y, 166, 52, "panel", outline="line", round_px=5)
        d.text(704, y + 16, f"SM {sm}" if sm < 3 else "SM 131", fill="dim", size=11)
        begin = 704
        for width in ((62, 46), (54, 54), (58, 44), (40, 30))[sm]:
            d.rect(begin, y + 23, width - 2, 9, "prefill")
            begin += width
        begin = 704
        for width in ((42, 38, 36, 30), (30, 46, 40, 30), (36, 36, 44, 30), (50, 50, 46))[sm]:
            d.rect(begin, y + 36, width - 2, 9, "decode")
            begin += width
        d.line([(612, 120), (690, y + 26)], arrow=True)
    d.text(694, 310, "time →", fill="dim", size=12)
    merging = "Pieces of one tile write partial results; the last of them to end merges them."
    d.text(20, 356, merging, fill="dim", size=12)
    return d


def _prefill_tiles(d: Drawing, x: float, y: float, width: float, height: float) -> None:
    """Draw a chunk at the end of its keys: each tile sees as far as its last row, by the mask."""
    rows = 5
    tile = height / rows
    for row in range(rows):
        top = y + row * tile
        seen = width - (rows - 1 - row) * tile
        d.rect(x, top, seen - tile - 2, tile - 2, "prefill", round_px=2)
        d.rect(x + seen - tile, top, tile - 2, tile - 2, "prefill-soft", outline="prefill")
    d.text(x, y + height + 14, "pale: cut by the causal mask, computed first", fill="dim", size=11)


def hopper() -> Drawing:
    """One CTA of the Hopper family: who copies, who computes, through which memory."""
    d = Drawing(
        880, 430, "A Hopper CTA: warps that copy, rings in shared memory, warpgroups that compute"
    )
    d.rect(20, 14, 840, 34, "panel", outline="line", round_px=5)
    d.text(440, 36, "L2 and HBM: queries, pages of keys and values", anchor="middle")

    d.text(860, 72, "warpgroup 0: copies, 40 registers a thread", bold=True, anchor="end")
    copies = (
        (20, "warp 0", "draws prefill units; Q, K"),
        (230, "warp 1", "V of the same units"),
        (460, "warp 2", "draws decode units; K, V"),
        (690, "warp 3", "nothing"),
    )
    for x, warp, does in copies:
        idle = does == "nothing"
        d.rect(x, 86, 170, 46, "panel" if idle else "copy-soft",
               outline="line" if idle else "copy", round_px=5, dashed=idle)  # fmt: skip
        d.text(x + 10, 105, warp, size=12, bold=True)
        d.text(x + 10, 122, does, fill="dim", size=12)
        if not idle:
            d.line([(x + 85, 48), (x + 85, 84)], "copy", arrow=True)

    d.text(860, 162, "shared memory", bold=True, anchor="end")
    d.rect(20, 174, 380, 76, "prefill-soft", outline="prefill", round_px=5)
    d.text(32, 193, "prefill tiles: Q, and rings of K and V", size=12)
    _slots(d, 32, 204, "prefill", ("Q", "K 0", "K 1", "V 0", "V 1"))
    d.rect(460, 174, 400, 76, "decode-soft", outline="decode", round_px=5)
    d.text(472, 193, "decode lane 0: Q, probabilities, a ring of K and V", size=12)
    _slots(d, 472, 204, "decode", ("Q", "P", "K", "K", "V", "V"))
    d.line([(105, 132), (105, 172)], "copy", arrow=True)
    d.line([(315, 132), (315, 172)], "copy", arrow=True)
    d.line([(545, 132), (545, 172)], "copy", arrow=True)

    d.text(860, 280, "warpgroups that compute", bold=True, anchor="end")
    groups = (
        (20, 182, "prefill", "warpgroup 2: prefill", "64 rows, 184 registers"),
        (218, 182, "prefill", "warpgroup 3: prefill", "64 rows, 184 registers"),
        (460, 240, "decode", "warpgroup 1: decode lane 0", "8 rows, 104 registers"),
    )
    for x, width, side, who, has in groups:
        d.rect(x, 292, width, 48, f"{side}-soft", outline=side, round_px=5)
        d.text(x + 10, 312, who, size=12, bold=True)
        d.text(x + 10, 330, has, fill="dim", size=12)
    d.line([(110, 250), (110, 290)], "prefill", arrow=True)
    d.line([(310, 250), (310, 290)], "prefill", arrow=True)
    d.line([(580, 250), (580, 290)], "decode", arrow=True)
    d.line([(202, 316), (218, 316)], "prefill", dashed=True)

    d.rect(20, 366, 840, 50, "panel", outline="line", round_px=5, dashed=True)
    d.text(32, 386, "Once prefill has run out", bold=True, size=12)
    then = "warps 0 and 1 copy for decode lanes 1 and 2, whose rings lie over the prefill tiles; "
    d.text(32, 404, then + "warpgroups 2 and 3 compute them.", fill="dim", size=12)
    return d


def _slots(d: Drawing, x: float, y: float, side: str, names: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        d.rect(x + index * 62, y, 56, 34, "panel", outline=side, round_px=3)
        d.text(x + index * 62 + 28, y + 22, name, size=12, anchor="middle")


def turns() -> Drawing:
    """Roles of one CTA over time: copies run ahead, prefill's two groups alternate."""
    d = Drawing(880, 300, "Roles over time: copies run ahead; prefill's two warpgroups take turns")
    left, top, row = 130, 40, 36
    d.text(left, 20, "time →", fill="dim", size=12)
    lanes = ("warp 0", "warp 1", "warp 2", "group 1", "group 2", "group 3")
    does = ("Q, K of prefill", "V of prefill", "K, V of decode", "decode", "prefill", "prefill")
    for index, (lane, role) in enumerate(zip(lanes, does, strict=True)):
        y = top + index * row
        d.text(left - 12, y + 13, lane, size=12, bold=True, anchor="end")
        d.text(left - 12, y + 27, role, fill="dim", size=10.5, anchor="end")
        d.rect(left, y, 730, 28, "panel")
    for index, spans in enumerate(_spans()):
        y = top + index * row
        for begin, width, fill, text in spans:
            d.rect(left + begin, y + 2, width - 2, 24, fill, round_px=2)
            ink = "on" if fill in ("prefill", "decode") else "ink"
            middle = left + begin + width / 2 - 1
            d.text(middle, y + 18, text, fill=ink, size=10.5, anchor="middle")
    key = "strong: products on the tensor cores; pale: softmax and stores. Not to scale."
    d.text(left, 282, key, fill="dim", size=12)
    return d


def _spans() -> list[list[tuple[float, float, str, str]]]:
    """Return the stretches of each lane of `turns`: begin, width, colour, text."""
    draw, copy = "panel", "copy-soft"
    warp_0 = [(0, 40, draw, "draw"), (40, 210, copy, "Q, K 0, K 1, K 2, ... as slots come free")]
    warp_0 += [(480, 40, draw, "draw"), (520, 210, copy, "K 0, K 1, ..., Q of the next unit")]
    warp_1 = [
        (50, 240, copy, "V 0, V 1, V 2, ... as slots come free"),
        (530, 200, copy, "V 0, V 1"),
    ]
    warp_2: list[tuple[float, float, str, str]] = []
    group_1: list[tuple[float, float, str, str]] = []
    for begin in (0, 365):
        warp_2 += [(begin, 40, draw, "draw"), (begin + 40, 90, copy, "K K V V")]
        warp_2 += [(begin + 130, 90, copy, "K K V V"), (begin + 220, 90, copy, "K K V V")]
        for step in range(2):
            at = begin + 70 + step * 130
            group_1 += [(at, 36, "decode", "Q K"), (at + 36, 58, "decode-soft", "softmax")]
            group_1 += [(at + 94, 36, "decode", "P V")]
        group_1 += [(begin + 330, 34, "decode-soft", "out")]
    return [warp_0, warp_1, warp_2, group_1, _prefill_group(70), _prefill_group(147)]


def _prefill_group(begin: float) -> list[tuple[float, float, str, str]]:
    """Return a group's turns: ``Q K`` of a tile with ``P V`` of the one before, then softmax."""
    turn = 77
    spans = [(begin, turn, "prefill", "Q K 0"), (begin + turn, turn, "prefill-soft", "softmax 0")]
    for tile in range(1, 3):
        at = begin + 2 * tile * turn
        spans += [(at, turn, "prefill", f"Q K {tile}, P V {tile - 1}")]
        spans += [(at + turn, turn, "prefill-soft", f"softmax {tile}")]
    last = begin + 6 * turn
    return [*spans, (last, turn, "prefill", "P V 2"), (last + turn, 40, "prefill-soft", "out")]


def portable() -> Drawing:
    """CTAs of the portable family, which take a side by the tickets of the SM they landed on."""
    d = Drawing(880, 250, "CTAs take tickets from the counter of their SM, which decide their side")
    d.text(20, 22, "an SM, ratio 1:3, four CTAs at a time", bold=True)
    d.rect(20, 34, 130, 76, "panel", outline="line", round_px=5)
    d.text(85, 58, "ticket counter", anchor="middle")
    d.text(85, 78, "of this SM", anchor="middle")
    d.text(85, 98, "0, 1, 2, 3, 4, ...", fill="dim", size=12, anchor="middle")
    for ticket in range(8):
        side = "prefill" if ticket % 4 == 0 else "decode"
        x = 216 + ticket * 81
        d.rect(x, 34, 74, 76, f"{side}-soft", outline=side, round_px=5)
        d.text(x + 37, 58, f"ticket {ticket}", size=12, bold=True, anchor="middle")
        d.text(x + 37, 78, side, size=12, anchor="middle")
        d.text(x + 37, 96, f"{ticket} mod 4 = {ticket % 4}", fill="dim", size=10.5, anchor="middle")
    d.line([(150, 72), (212, 72)], arrow=True)
    d.text(20, 146, "what a CTA does with its ticket", bold=True)
    boxes = (
        ("draws a ticket", "one thread, one atomic"),
        ("side = ticket mod (P + D)", "the first P are prefill's"),
        ("draws a unit of it", "or of the other side, if none is left"),
        ("computes it", "the whole CTA, or a warp each"),
    )
    for index, (what, how) in enumerate(boxes):
        x = 20 + index * 216
        d.rect(x, 158, 192, 52, "panel", outline="line", round_px=5)
        d.text(x + 96, 180, what, size=12, bold=True, anchor="middle")
        d.text(x + 96, 198, how, fill="dim", size=11, anchor="middle")
        if index:
            d.line([(x - 24, 184), (x - 3, 184)], arrow=True)
    d.line([(764, 210), (764, 232), (116, 232), (116, 213)], arrow=True)
    d.text(440, 246, "again, until both queues are empty", fill="dim", size=11, anchor="middle")
    return d


DRAWINGS = {"work": work, "hopper": hopper, "turns": turns, "portable": portable}


def main() -> None:
    """Write all drawings."""
    for name, drawing in DRAWINGS.items():
        drawing().save(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
