"""Structs that host and device share: NumPy's layout is the compiler's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from spec_support import spec_of

from podrt.errors import CompileError
from podrt.jit import KernelSource, compile_source
from podrt.kernels.arguments import (
    PLAN_HEADER,
    PLAN_HEADER_BYTES,
    PLAN_STRUCTS,
    write_plan_header,
)
from podrt.kernels.hopper import host as hopper
from podrt.kernels.portable import host as portable
from podrt.kernels.structs import Field, fill_struct, render_struct, struct_dtype
from podrt.plan.joins import Joins
from podrt.plan.work import WORK_ITEM, WORK_ITEM_FIELDS, Plan

WORK_ITEM_C = tuple(Field("int", name, doc) for name, doc in WORK_ITEM_FIELDS)

#: Padding inside and at the end.
MIXED = (
    Field("int", "a", "four bytes, then four of padding"),
    Field("const float*", "b", "eight"),
    Field("float", "c", "four, then four of padding at the end"),
)
ARRAY = (*MIXED, Field("int", "d", "three in the place of that padding and beyond", 3))


def compiled(struct: str, name: str) -> None:
    declarations = "" if name == "PlanHeader" else "struct PlanHeader;\n"  # Params points at it
    kernel = f'extern "C" __global__ void layout({name}* x) {{}}\n'
    text = f'#include "ptx/tma.cuh"\n{declarations}{struct}\n{kernel}'
    compile_source(KernelSource(name=f"layout_of_{name}", arch="sm_90a", text=text, entry="layout"))


def test_numpy_pads_as_c_does() -> None:
    dtype = struct_dtype(MIXED)
    assert [dtype.fields[name][1] for name in "abc"] == [0, 8, 16]
    assert dtype.itemsize == 24


def test_pointers_are_64_bit_numbers_and_numbers_keep_their_type() -> None:
    dtype = struct_dtype(MIXED)
    assert [dtype[name] for name in "abc"] == [np.int32, np.uint64, np.float32]


def test_unknown_c_type_is_refused() -> None:
    with pytest.raises(KeyError, match="double"):
        struct_dtype([Field("double", "x", "")])


@pytest.mark.parametrize(
    ("name", "fields", "align"),
    [
        ("Mixed", MIXED, 1),
        ("Array", ARRAY, 1),
        ("Params", portable.PARAMS, 1),
        ("Params", hopper.PARAMS, 64),
        ("WorkItem", WORK_ITEM_C, 16),
        ("PlanHeader", PLAN_HEADER, 64),
    ],
    ids=["mixed", "array", "portable", "hopper", "work item", "plan header"],
)
def test_compiler_agrees_with_numpy(name: str, fields: tuple[Field, ...], align: int) -> None:
    compiled(render_struct(name, fields, align=align), name)


def test_work_item_of_the_plan_is_that_of_the_kernels() -> None:
    assert struct_dtype(WORK_ITEM_C) == WORK_ITEM
    assert WORK_ITEM.itemsize % 16 == 0  # alignas(16) must not add padding
    assert render_struct("WorkItem", WORK_ITEM_C, align=16) in PLAN_STRUCTS


def empty_plan(**changes: Any) -> Plan:
    none = np.empty(0, WORK_ITEM)
    plan = Plan(
        prefill=none,
        decode=none,
        spec=spec_of(2, 4),
        prefill_rows=128,
        decode_rows=16,
        num_merges=0,
        partial_rows=0,
        prefill_keys=0,
        decode_keys=0,
    )
    return plan._replace(**changes)


def header_of(plan: Plan, page_table: int, kv_lens: int, tree_mask: int = 0) -> bytes:
    memory = np.full(PLAN_HEADER_BYTES + 8, 0xAA, np.uint8)
    write_plan_header(memory, plan, page_table, kv_lens, tree_mask)
    assert (memory[PLAN_HEADER_BYTES:] == 0xAA).all()
    return memory[:PLAN_HEADER_BYTES].tobytes()


def test_header_says_what_the_plan_knows() -> None:
    plan = empty_plan(
        prefill=np.empty(3, WORK_ITEM),
        decode=np.empty(5, WORK_ITEM),
        decode_only_ctas=7,
        prefill_only_ctas=9,
        prefill_share=2,
        decode_share=11,
        prefill_runs=(1, 3),
    )
    (header,) = np.frombuffer(
        header_of(plan, page_table=2**63 + 64, kv_lens=128, tree_mask=192),
        struct_dtype(PLAN_HEADER, align=64),
    )
    assert {name: header[name].tolist() for name in header.dtype.names} == {
        "page_table": 2**63 + 64,
        "kv_lens": 128,
        "num_prefill_items": 3,
        "num_decode_items": 5,
        "decode_only_ctas": 7,
        "prefill_only_ctas": 9,
        "prefill_share": 2,
        "decode_share": 11,
        "prefill_runs": [0] * 30 + [1, 3],
        "tree_mask": 192,
        "joins": 0,
        "num_joined_tokens": 0,
    }


def test_header_says_where_joins_are() -> None:
    joins = Joins(np.zeros((5, 8), np.int32), np.zeros((7, 2), np.int32))
    memory = np.zeros(PLAN_HEADER_BYTES, np.uint8)
    write_plan_header(memory, empty_plan(joins=joins), 0, 0, joins=256)
    (header,) = np.frombuffer(memory, struct_dtype(PLAN_HEADER, align=64))
    assert (header["joins"], header["num_joined_tokens"]) == (256, 5)


def test_items_behind_the_header_are_aligned() -> None:
    assert PLAN_HEADER_BYTES % 64 == 0


def test_an_empty_plan_is_a_header_of_zeros() -> None:
    plan = empty_plan(prefill_share=0, decode_share=0)
    assert header_of(plan, page_table=0, kv_lens=0) == bytes(PLAN_HEADER_BYTES)


@pytest.mark.parametrize("family", [portable, hopper])
def test_argument_block_fits_a_launch(family: ModuleType) -> None:
    assert family.PARAMS_DTYPE.names == tuple(field.name for field in family.PARAMS)
    assert family.PARAMS_DTYPE.itemsize <= 4096


def test_tensor_maps_lie_on_64_bytes() -> None:
    members = hopper.PARAMS_DTYPE.fields
    maps = [field.name for field in hopper.PARAMS if field.ctype == "TensorMap"]
    assert len(maps) == 5
    assert all(members[name][1] % 64 == 0 for name in maps)
    assert hopper.PARAMS_DTYPE.itemsize % 64 == 0


def test_filled_struct_keeps_every_value() -> None:
    values = {"a": -7, "b": 2**64 - 16, "c": 0.125}
    block = fill_struct(struct_dtype(MIXED), **values)
    assert block.shape == (1,)
    assert {name: block[name][0] for name in "abc"} == values


@pytest.mark.parametrize("family", [portable, hopper])
def test_filled_arguments_lie_where_the_layout_says(family: ModuleType) -> None:
    dtype = family.PARAMS_DTYPE
    values = {
        field.name: bytes([number]) * 128 if field.ctype == "TensorMap" else number
        for number, field in enumerate(family.PARAMS, start=1)
    }
    expected = np.zeros(1, dtype)
    for name, value in values.items():
        expected[name] = np.frombuffer(value, "V128") if isinstance(value, bytes) else value
    assert fill_struct(dtype, **values).tobytes() == expected.tobytes()


def test_missing_unknown_and_too_large_members_are_refused() -> None:
    dtype = struct_dtype(MIXED)
    with pytest.raises(TypeError, match="missing a, c"):
        fill_struct(dtype, b=1)
    with pytest.raises(TypeError, match="unknown colour"):
        fill_struct(dtype, a=1, b=2, c=3, colour=4)
    with pytest.raises(OverflowError):
        fill_struct(dtype, a=2**31, b=2, c=3)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("  int a;", "  long long a;  int more;", "Mixed differs from the host"),
        ("  const float* b;", "  float b;", "Mixed.b differs from the host"),
        ("  int a;", "  float c0;  int a;", "Mixed.a differs from the host"),
    ],
)
def test_compiler_refuses_another_layout(old: str, new: str, complaint: str) -> None:
    struct = render_struct("Mixed", MIXED)
    assert old in struct
    with pytest.raises(CompileError) as caught:
        compiled(struct.replace(old, new), "Mixed")
    assert complaint in caught.value.log


def test_padding_for_alignment_is_on_both_sides() -> None:
    assert struct_dtype(MIXED, align=16).itemsize == 32
    compiled(render_struct("Mixed", MIXED, align=16), "Mixed")


def test_members_are_described_where_they_are_declared() -> None:
    assert "  const float* b;  // eight" in render_struct("Mixed", MIXED)
