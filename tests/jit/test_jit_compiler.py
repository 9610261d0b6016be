from __future__ import annotations

import importlib
import pickle
import re
from dataclasses import replace

import pytest
from jit_support import SPILLING_TEXT, tiny_source

from podrt import jit, knobs
from podrt.errors import CompileError, DeviceError, PodrtError

render_module = importlib.import_module("podrt.jit.render")
nvrtc_module = importlib.import_module("podrt.jit.nvrtc")
disassembler = importlib.import_module("podrt.jit.disassembler")


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
def test_compiles_for_any_architecture_without_a_gpu(arch):
    build = jit.compile_source(tiny_source(arch=arch))
    assert build.cubin.startswith(b"\x7fELF")
    assert build.origin == "compiled"
    assert build.compile_time_s > 0
    assert build.recipe.release == jit.nvrtc_release()
    assert 0 < build.resources.registers <= 255
    assert f"'{arch}'" in build.log


def test_ptx_is_for_the_same_architecture():
    ptx = jit.compile_ptx(tiny_source(arch="sm_90a"))
    assert ".target sm_90a" in ptx
    assert ".entry tiny(" in ptx


def refusal(**changes) -> CompileError:
    with pytest.raises(CompileError) as caught:
        jit.compile_source(replace(tiny_source(), **changes))
    return caught.value


def test_compile_error_names_its_reason_first_and_shows_the_lines_around_it():
    text = "".join(f"int ok{number};\n" for number in range(100)) + "int bad = nothing;\nint end;\n"
    error = refusal(text=text, options=("-DX=1",))
    assert error.name == "tiny1"
    assert "--gpu-architecture=sm_90a" in error.options
    lines = str(error).splitlines()
    assert lines[0] == 'NVRTC could not compile tiny1: identifier "nothing" is undefined'
    assert lines[1:4] == ["tiny1.cu:", "    97 | int ok96;", "    98 | int ok97;"]
    assert lines[6:8] == [">  101 | int bad = nothing;", "   102 | int end;"]
    assert 'tiny1.cu(101): error: identifier "nothing" is undefined' in lines
    assert "-DX=1" in lines[-2]
    assert "listing()" in lines[-1]
    assert len(lines) < 25


def test_listing_of_a_compile_error_is_the_whole():
    listing = refusal(text="int ok;\nint bad = nothing;\n", options=("-DX=1",)).listing()
    for part in ("    1 | int ok;", "    2 | int bad = nothing;", "-DX=1", "tiny1.cu(2): error:"):
        assert part in listing


def test_compile_error_in_a_header_shows_the_header(monkeypatch, tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "n.cuh").write_text("int ok;\nint bad = nothing;\n")
    monkeypatch.setattr(render_module, "templates_dir", lambda: tmp_path)
    lines = str(refusal(text='#include "common/n.cuh"\n')).splitlines()
    assert lines[1:4] == ["common/n.cuh:", "     1 | int ok;", ">    2 | int bad = nothing;"]


def test_compile_error_without_a_line_shows_none():
    text = 'extern "C" __global__ void tiny(float* p) { asm volatile("foo;"); }'
    lines = str(refusal(text=text)).splitlines()
    assert lines[0].endswith(": Not a name of any known instruction: 'foo'")
    assert lines[1] == ""
    assert not any("asm volatile" in line for line in lines)


def test_long_log_is_cut_and_whole_in_the_listing():
    error = CompileError("k", "", (), "\n".join(f"k.cu(1): error: {n}" for n in range(100)))
    assert "... and 60 more lines" in str(error)
    assert "error: 99" not in str(error)
    assert "error: 99" in error.listing()


def test_compile_error_survives_a_pickle():
    error = refusal(text="nonsense")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_unknown_option_is_a_compile_error():
    with pytest.raises(CompileError, match="--no-such-option"):
        jit.compile_source(replace(tiny_source(), options=("--no-such-option",)))


def test_unknown_architecture_is_a_compile_error():
    with pytest.raises(CompileError, match="gpu-architecture"):
        jit.compile_source(tiny_source(arch="sm_999"))


def test_options_reach_the_compiler():
    text = 'extern "C" __global__ void tiny(int* p) { *p = VALUE; }'
    jit.compile_source(replace(tiny_source(), text=text, options=("-DVALUE=7",)))


def test_headers_come_from_the_templates_alone(monkeypatch, tmp_path):
    """A header of the same name in the working folder must not slip in: no key would notice."""
    templates, elsewhere = tmp_path / "templates", tmp_path / "elsewhere"
    for folder, content in ((templates, "#define N 5\n"), (elsewhere, "#error wrong folder\n")):
        (folder / "common").mkdir(parents=True)
        (folder / "common" / "n.cuh").write_text(content)
    monkeypatch.setattr(render_module, "templates_dir", lambda: templates)
    monkeypatch.chdir(elsewhere)
    text = '#include "common/n.cuh"\nextern "C" __global__ void tiny(int* p) { *p = N; }'
    jit.compile_source(replace(tiny_source(), text=text))


def test_spills_are_reported():
    resources = jit.compile_source(
        jit.KernelSource("spills", "sm_90a", SPILLING_TEXT, "spills")
    ).resources
    assert resources.registers == 32
    assert resources.stack_bytes > 0
    assert resources.spill_store_bytes > 0
    assert resources.spill_load_bytes > 0


def test_static_shared_memory_and_warnings_are_reported():
    text = """
    extern "C" __global__ void tiny(float* p) {
      __shared__ float s[1000];
      int never_used;
      s[threadIdx.x] = p[0];
      __syncthreads();
      p[threadIdx.x] = s[threadIdx.x ^ 1];
    }"""
    resources = jit.compile_source(replace(tiny_source(), text=text)).resources
    assert resources.static_smem_bytes == 4000
    assert resources.spill_store_bytes == 0
    (warning,) = resources.warnings
    assert "never_used" in warning


def test_report_of_several_functions_and_advisories():
    log = """
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Function properties for helper
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for k
ptxas         .     32 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 32 bytes cumulative stack size, 64 bytes smem
ptxas warning : something looks odd
Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"
"""
    resources = jit.Resources.from_log(log)
    assert resources == jit.Resources(168, 64, 32, 16, 24, resources.warnings)
    assert [line[:13] for line in resources.warnings] == ["ptxas info   ", "ptxas warning"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"),  # NVRTC is given it, for its messages and line tables
        ("text", "other"),
        ("arch", "sm_80"),
        ("entry", "other"),
        ("options", ("-DX",)),
    ],
)
def test_key_changes_with(field, value):
    assert jit.cache_key(replace(tiny_source(), **{field: value})) != jit.cache_key(tiny_source())


def test_key_is_free_of_where_podrt_is_installed(monkeypatch, tmp_path):
    before = jit.cache_key(tiny_source())
    monkeypatch.setattr(render_module, "templates_dir", lambda: tmp_path)
    assert jit.cache_key(tiny_source()) == before


def test_key_changes_with_lineinfo_and_nvrtc(monkeypatch):
    keys = {jit.cache_key(tiny_source())}
    with knobs.scope(jit_lineinfo=True):
        keys.add(jit.cache_key(tiny_source()))
    key_module = importlib.import_module("podrt.jit.key")
    patched = jit.nvrtc_release().replace("release", "released")
    monkeypatch.setattr(key_module, "nvrtc_release", lambda: patched)
    keys.add(jit.cache_key(tiny_source()))
    assert len(keys) == 3


def test_release_tells_the_patch_and_the_build():
    release = jit.nvrtc_release()
    assert re.search(r"V{}\.{}\.\d+".format(*jit.nvrtc_version()), release)
    assert "Build ID" in release


def test_lineinfo_puts_source_lines_in_the_cubin():
    with knobs.scope(jit_lineinfo=True):
        assert b".debug_line" in jit.compile_source(tiny_source()).cubin
    assert b".debug_line" not in jit.compile_source(tiny_source()).cubin


@pytest.mark.parametrize(
    ("field", "value"), [("name", "../up"), ("name", ""), ("arch", "hopper"), ("entry", "a b")]
)
def test_source_refuses_what_cannot_be_used(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}: expected"):
        replace(tiny_source(), **{field: value})


def test_missing_nvrtc_says_how_to_install_it(monkeypatch):
    def no_library():
        raise RuntimeError("no libnvrtc")

    for cached in (nvrtc_module._bindings, nvrtc_module.nvrtc_release):
        cached.cache_clear()
    try:
        monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", no_library)
        with pytest.raises(DeviceError, match=r"no libnvrtc.*pip install 'podrt\[cuda13\]'"):
            jit.compile_source(replace(tiny_source(), name="no_nvrtc"))
    finally:
        nvrtc_module._bindings.cache_clear()


def test_nvrtc_without_its_builtins_says_so(monkeypatch):
    log = "nvrtc: error: failed to open libnvrtc-builtins.so.13.0."
    monkeypatch.setattr(nvrtc_module, "run_nvrtc", lambda *_: nvrtc_module.Output(False, log))
    nvrtc_module.nvrtc_release.cache_clear()
    with pytest.raises(DeviceError, match=r"libnvrtc-builtins.*pip install 'podrt\[cuda13\]'"):
        jit.compile_source(tiny_source())


def test_sass_shows_the_kernel():
    if jit.find_nvdisasm() is None:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    sass = jit.disassemble(jit.compile_source(tiny_source()).cubin)
    assert ".text.tiny" in sass
    assert "EXIT" in sass
    with pytest.raises(PodrtError, match="nvdisasm could not read"):
        jit.disassemble(b"no cubin")


def test_missing_nvdisasm_names_the_wheel(monkeypatch):
    monkeypatch.setattr(disassembler, "find_nvdisasm", lambda: None)
    with pytest.raises(PodrtError, match="pip install nvidia-cuda-nvdisasm"):
        jit.disassemble(b"")
