"""Folders that build and run one variant: sources compile, and say what podrt would launch."""

from __future__ import annotations

import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_support import run
from map_support import record_maps

from podrt.explore.alone import alone, edge_lengths, gpu_for, layer_for
from podrt.explore.repro import Repro, flat_source, write_repro
from podrt.explore.select import find
from podrt.jit import compile_source
from podrt.kernels.arguments import PLAN_HEADER_BYTES, PLAN_HEADER_DTYPE, Buffers
from podrt.kernels.families import argument_block, params_dtype, source_of
from podrt.plan import WORK_ITEM
from podrt.reference import execute_plan, reference_attention
from podrt.spec.batch import HybridBatch
from podrt.tensors.run_tensors import RunTensors
from podrt.tensors.view import TensorView, numpy_dtype
from podrt.workloads.lengths import batch_of_lengths

HOPPER = ["pod-hopper-bf16-d128-page16-r8"]
FEW = [
    HOPPER,
    ["decode-hopper-f16-d64-contiguous-r16"],
    ["pod-portable-sm_80-f16-d64-page16-c4", "--arch", "sm_80"],
    ["prefill-portable-sm_90a-bf16-d128-contiguous-c2-softcap"],
]


def tools_of(folder: Path):
    """Import a folder's tools.py, which needs no podrt."""
    spec = importlib.util.spec_from_file_location("repro_tools", folder / "tools.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Is given how rows lie in the place of maps.
GATHERS = "pod-hopper-bf16-d128-page4-r8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the fused Hopper kernel."""
    return written(HOPPER[0], tmp_path_factory.mktemp("repro") / "pod")


def repro_of(name, seed=3):
    variant = find([name])
    layer, gpu = layer_for(variant, 8, 2), gpu_for(variant)
    lengths = tuple(edge_lengths(variant, layer.group))
    found = alone(variant, layer, batch_of_lengths(lengths, variant.page_size), gpu)
    return Repro(variant, layer, lengths, gpu, found, seed)


def written(name, to):
    write_repro(repro_of(name), to)
    return to


def launch_in(folder):
    return json.loads((folder / "launch.json").read_text())


def inputs_of(folder):
    """Return what run.py makes from the seed, as 16-bit patterns."""
    launch, tools = launch_in(folder), tools_of(folder)
    rng = np.random.default_rng(launch["seed"])
    return {
        name: tools.to_bits(rng.standard_normal(shape, np.float32), launch["dtype"])
        for name, shape in launch["inputs"].items()
    }


@pytest.mark.parametrize("words", FEW, ids=lambda words: words[0])
def test_the_source_compiles_by_itself(words, tmp_path):
    run("explore", "repro", *words, "-o", tmp_path / "r")
    launch, tools = launch_in(tmp_path / "r"), tools_of(tmp_path / "r")
    assert "#include" not in (tmp_path / "r" / "kernel.cu").read_text()
    cubin = tools.compile_cubin(tmp_path / "r" / "kernel.cu", launch["options"])
    assert cubin[:4] == b"\x7fELF"
    assert launch["entry"].encode() in cubin


def test_other_tiles_can_be_fixed(tmp_path):
    fix = ["--fix", "prefill_tile_keys=96", "--fix", "decode_ring=3"]
    run("explore", "repro", *HOPPER, *fix, "-o", tmp_path / "r")
    assert "p128x96s2_d8x64s3" in launch_in(tmp_path / "r")["entry"]
    with pytest.raises(ValueError, match="bytes of shared memory"):
        run("explore", "repro", *HOPPER, "--fix", "prefill_tile_keys=176", "-o", tmp_path / "s")
    with pytest.raises(ValueError, match="try prefill_tile_keys"):
        run("explore", "repro", *HOPPER, "--fix", "prefill_tile=176", "-o", tmp_path / "s")


def test_the_flat_source_is_the_same_code():
    variant = find(["decode-portable-sm_80-f16-d64-page16-c4"])
    source = source_of(variant)
    flat = type(source)(source.name, source.arch, flat_source(source), source.entry)
    assert flat.headers == ()
    first, second = compile_source(source), compile_source(flat)
    # headers' unused names are worth a warning where they are no headers
    assert first.resources == replace(second.resources, warnings=())


def test_a_folder_is_not_written_over(folder):
    with pytest.raises(FileExistsError, match="has files in it"):
        write_repro(repro_of(HOPPER[0]), folder)


def test_the_runner_is_short_and_needs_no_podrt(folder):
    for name, most in (("run.py", 70), ("tools.py", 100)):
        text = (folder / name).read_text()
        assert len(text.splitlines()) <= most
        assert "import podrt" not in text
        compile(text, name, "exec")


def test_the_readme_has_the_commands(folder):
    text, entry = (folder / "README.md").read_text(), launch_in(folder)["entry"]
    assert f"--kernel-name {entry} --launch-count 1 -o report python run.py" in text
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"compute-sanitizer --tool {tool} --kernel-name kernel_name={entry}" in text


def test_the_plan_computes_what_the_reference_of_the_folder_does(folder):
    repro, launch, tools = repro_of(HOPPER[0]), launch_in(folder), tools_of(folder)
    bits = inputs_of(folder)
    inputs = {name: tools.to_float(each, launch["dtype"]) for name, each in bits.items()}
    expected = tools.reference(inputs, launch)
    typed = {name: each.view(numpy_dtype(launch["dtype"])) for name, each in bits.items()}
    table = np.array(launch["page_table"], np.int32)
    plan = (folder / "plan.bin").read_bytes()
    header = np.frombuffer(plan[:PLAN_HEADER_BYTES], PLAN_HEADER_DTYPE)[0]
    count = int(header["num_prefill_items"] + header["num_decode_items"])
    items = np.frombuffer(plan, WORK_ITEM, count, PLAN_HEADER_BYTES)
    out, _ = execute_plan(
        repro.plan._replace(
            prefill=items[: header["num_prefill_items"]],
            decode=items[header["num_prefill_items"] :],
        ),
        typed["q"],
        typed["k_cache"],
        typed["v_cache"],
        page_table=table.ravel(),
        page_size=16,
    )
    np.testing.assert_allclose(out, expected, atol=1e-9)


@pytest.mark.parametrize(("causal", "cap"), [(True, None), (False, None), (True, 0.7)])
def test_the_reference_of_the_folder_is_right(folder, causal, cap):
    tools = tools_of(folder)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((6, 4, 64))
    keys, values = rng.standard_normal((2, 2, 32, 2, 64))
    requests = [[2, 30], [4, 9]]
    launch = {"group": 2, "page_table": None, "requests": requests, "sm_scale": 0.125}
    inputs = {"q": q, "k_cache": keys, "v_cache": values}
    got = tools.reference(inputs, {**launch, "causal": causal, "soft_cap": cap})
    batch = HybridBatch.contiguous(np.array([0, 2, 6], np.int32), np.array([30, 9], np.int32))
    expected, _ = reference_attention(
        q, keys, values, batch, causal=causal, sm_scale=launch["sm_scale"], logits_soft_cap=cap
    )
    np.testing.assert_allclose(got, expected, atol=1e-12)


def view_of(name, shape, dtype, pointer):
    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return TensorView(name, pointer, tuple(shape), strides, dtype, 0, True, "cupy", None)


@pytest.mark.parametrize("name", [*(words[0] for words in FEW), GATHERS])
def test_the_parameter_is_what_podrt_would_pass(name, tmp_path, monkeypatch):
    asked = record_maps(monkeypatch)
    folder = written(name, tmp_path / "r")
    repro, launch = repro_of(name), launch_in(folder)
    buffers = ["q", "k_cache", "v_cache", "out", *Buffers._fields]
    at = {buffer: 4096 * number for number, buffer in enumerate(buffers, start=1)}
    tensors = RunTensors(
        *(view_of(n, launch["inputs"][n], launch["dtype"], at[n]) for n in buffers[:3]),
        view_of("out", launch["inputs"]["q"], launch["dtype"], at["out"]),
        None, None, None, (True, True),
    )  # fmt: skip
    block = argument_block(
        repro.variant, repro.layer, tensors, Buffers(*(at[n] for n in Buffers._fields))
    )
    block.point_to(*tensors.addresses())
    expected = np.frombuffer(bytes(block), params_dtype(repro.variant), 1)[0]
    mine = bytearray(launch["params_bytes"])
    for offset, kind, value, *shape in launch["params"]:
        if kind == "map":
            number = next(
                number
                for number, (pointer, *described) in enumerate(asked, start=1)
                if pointer == at[value] and [list(d) for d in described[:3]] == shape
            )
            mine[offset : offset + 128] = bytes([number]) * 128
        else:
            number = at[value] if kind == "address" else value
            code = {"address": "<Q", "int": "<i", "uint": "<I", "float": "<f"}[kind]
            struct.pack_into(code, mine, offset, number)
    got = np.frombuffer(bytes(mine), params_dtype(repro.variant), 1)[0]
    for member in expected.dtype.names:
        if not member.endswith("_map") or (name == GATHERS and member != "q_map"):
            assert got[member] == expected[member], member
        else:  # maps of one tensor and shape are asked for more than once
            first, second = (asked[each[member].tobytes()[0] - 1] for each in (got, expected))
            assert first == second, member
