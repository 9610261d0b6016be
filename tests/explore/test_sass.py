"""SASS: control words, source lines, two of them side by side."""

from __future__ import annotations

import re

import pytest
from cli_support import HOPPER, run, run_json, small_paged

from podrt.explore.listing import What, columns_of, diff_of
from podrt.explore.sass import Control, with_control, with_source
from podrt.explore.select import find
from podrt.explore.side_by_side import side_by_side
from podrt.jit import disassemble, find_nvdisasm
from podrt.jit.build import build
from podrt.kernels.families import source_of

needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="no nvdisasm")

#: As nvdisasm prints it: a load into R4 that is awaited two instructions later.
SASS = """
.text.kernel:
	//## File "/some/where/common/queue.cuh", line 2 inlined at "/some/where/kernel.cu", line 3
	//## File "/some/where/kernel.cu", line 3
        /*0010*/                   S2R R4, SR_TID.X ;         /* 0x0000000000047919 */
                                                              /* 0x000e620000002100 */
	//## File "/some/where/kernel.cu", line 1
        /*0020*/                   ULDC.64 UR6, c[0x0][0x118] ; /* 0x0000460000067ab9 */
                                                              /* 0x000fe20000000a00 */
        /*0030*/               @P0 SHF.R.U32.HI R5, RZ, 0x5, R4 ; /* 0x00000005ff057819 */
                                                              /* 0x002fc80000011604 */
.L_x_1:
"""


def test_fields_of_a_control_word() -> None:
    assert Control.of(0x000E620000002100) == Control((), None, 1, False, 1)
    assert Control.of(0x002FC80000011604) == Control((1,), None, None, True, 4)
    every = Control.of(0b111111 << 52 | 5 << 49 | 0 << 46 | 1 << 45 | 15 << 41)
    assert str(every) == "[B012345:R5:W0:-:S15]"


def test_control_stands_in_front_of_each_instruction() -> None:
    lines = with_control(SASS).splitlines()
    instructions = [line for line in lines if "/*00" in line]
    assert [line.split()[0] for line in instructions] == [
        "[B------:R-:W1:-:S01]",
        "[B------:R-:W-:-:S01]",
        "[B-1----:R-:W-:Y:S04]",
    ]
    assert instructions[2].endswith("@P0 SHF.R.U32.HI R5, RZ, 0x5, R4 ;")
    assert "0x000e62" not in "".join(lines)
    assert ".text.kernel:" in lines and ".L_x_1:" in lines


def test_instructions_stand_below_their_source_and_its_callers() -> None:
    texts = {"kernel.cu": "first\nsecond\n  third", "common/queue.cuh": "#pragma once\n  draw();"}
    lines = with_source(SASS, texts).splitlines()
    at = lines.index("// common/queue.cuh:2 < kernel.cu:3")
    assert lines[at + 1] == "//     draw();"
    assert "S2R" in lines[at + 2]
    assert lines[at + 3 : at + 5] == ["// kernel.cu:1", "//     first"]
    assert "ULDC" in lines[at + 5] and "SHF" in lines[at + 6]


def test_a_line_of_no_known_file_is_named_alone() -> None:
    lines = with_source(SASS, {}).splitlines()
    assert "// /some/where/common/queue.cuh:2 < /some/where/kernel.cu:3" in lines


@needs_nvdisasm
def test_every_instruction_has_its_control_and_comes_from_a_line() -> None:
    config, *_ = small_paged()
    plain = disassemble(build(source_of(config)).cubin)
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+.*;", plain)
    for what in ("sass", "lines"):
        text = run("explore", "show", config.name, "--what", what)
        # Line numbers change no instruction.
        found = re.findall(r"^\[B[-0-5]{6}:R[-0-5]:W[-0-5]:[-Y]:S\d\d\] (/\*.*;)$", text, re.M)
        assert found == instructions
    assert "// common/queue.cuh:" in text
    assert "// kernel.cu:" in text


@needs_nvdisasm
def test_a_barrier_that_is_waited_for_was_taken() -> None:
    """What a Hopper kernel waits for is held by some instruction: the fields are the right ones."""
    name = run("explore", "list", *HOPPER).split()[0]
    text = run("explore", "show", name, "--what", "sass")
    controls = re.findall(r"^\[B(.{6}):R(.):W(.):", text, re.M)
    waited = {bit for waits, _, _ in controls for bit in waits} - {"-"}
    taken = {bit for _, read, write in controls for bit in (read, write)} - {"-"}
    assert waited and waited <= taken <= set("012345")
    loads = re.findall(r"^\[B.{6}:R.:W(.):.*\bLDG\.E", text, re.M)
    assert loads and "-" not in loads


def test_two_columns_show_what_differs_and_what_stands_around_it() -> None:
    first = [f"line {n}" for n in range(20)]
    second = [*first[:10], "new", *first[10:15], "changed", *first[16:]]
    lines = side_by_side(first, second, 43)
    assert max(map(len, lines)) <= 43
    assert f"{'':20} > new" in lines
    assert f"{'line 15':20} | changed" in lines
    assert f"{'line 9':20}   line 9" in lines
    assert not any("line 0 " in line for line in lines)
    assert f"{'line 8':20}   line 8" == lines[0]  # where the part begins, counted from 1
    assert f"{'gone':20} <" in side_by_side([*first, "gone"], first, 43)


def test_columns_cut_long_lines_and_refuse_to_be_too_narrow() -> None:
    assert "…" in side_by_side(["x" * 100], ["y"], 40)[1]
    assert side_by_side(["same"], ["same"], 40) == []
    with pytest.raises(ValueError, match="at least"):
        side_by_side(["a"], ["b"], 10)


@needs_nvdisasm
def test_sass_that_differs_in_places_alone_is_the_same() -> None:
    first, second, *_ = small_paged()
    assert diff_of(first, first, What.sass) == ""
    text = diff_of(first, second, What.sass)
    assert text and not re.search(r"/\*[0-9a-f]{4}\*/|\.L_x_", text)
    assert columns_of(first, second, What.sass, 160)


def test_columns_of_a_diff(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    first, second, *_ = small_paged()
    options = ["--what", "config", "--columns"]
    text = run("explore", "show", first.name, *options, "--diff", second.name)
    assert re.search(rf'"warps": {first.warps}, +\| +"warps": {second.warps},', text)
    assert max(map(len, text.splitlines())) <= 100
    same = run("explore", "show", first.name, *options, "--diff", first.name)
    assert same.strip() == "No difference in config."
    with pytest.raises(ValueError, match="--diff"):
        run("explore", "show", first.name, "--columns")


def test_json_of_stats_has_shared_memory_by_buffer() -> None:
    (row,) = run_json("explore", "stats", *HOPPER)
    assert sum(row["smem_buffers"].values()) == find([row["name"]]).smem_bytes
