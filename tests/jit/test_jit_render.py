from __future__ import annotations

import importlib

import jinja2
import pytest

from podrt import jit

render_module = importlib.import_module("podrt.jit.render")


@pytest.fixture(autouse=True)
def templates(monkeypatch, tmp_path):
    """A templates folder of the test's own."""
    monkeypatch.setattr(render_module, "templates_dir", lambda: tmp_path)
    (tmp_path / "common").mkdir()
    return tmp_path


def test_render_fills_in_values_and_keeps_lines(templates):
    text = "{% if wide %}\nint w = {{ n }};\n{% endif %}\n  {# note #}\nint x;\n"
    (templates / "k.cu").write_text(text)
    assert jit.render("k.cu", {"wide": True, "n": 3}) == "int w = 3;\nint x;\n"


def test_render_refuses_missing_names_and_templates(templates):
    (templates / "k.cu").write_text("{{ missing }}")
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        jit.render("k.cu", {})
    with pytest.raises(jinja2.TemplateNotFound):
        jit.render("nothing.cu", {})


def test_headers_of_headers_are_collected(templates):
    (templates / "common" / "inner.cuh").write_text("int a;")
    outer = '#pragma once\n  #  include "common/inner.cuh"\n'
    (templates / "outer.cuh").write_text(outer)
    (templates / "other.cuh").write_text("int y;")
    assert jit.collect_headers('#include "outer.cuh"\n') == (
        ("common/inner.cuh", "int a;"),
        ("outer.cuh", outer),
    )


def test_includes_in_comments_and_of_the_compiler_are_none():
    assert jit.collect_headers('int x; // #include "gone.cuh"\n#include <cuda_fp16.h>') == ()


def test_headers_may_include_each_other(templates):
    (templates / "a.cuh").write_text('#include "b.cuh"\n')
    (templates / "b.cuh").write_text('#include "a.cuh"\n')
    names = [name for name, _ in jit.collect_headers('#include "a.cuh"')]
    assert names == ["a.cuh", "b.cuh"]


def test_missing_header_is_named_with_who_wants_it(templates):
    (templates / "a.cuh").write_text('#include "common/none.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r'"common/none.cuh" in a.cuh'):
        jit.collect_headers('#include "a.cuh"')


def test_edited_header_changes_the_key(templates):
    header = templates / "a.cuh"

    def key():
        return jit.cache_key(jit.KernelSource("k", "sm_90a", '#include "a.cuh"\n', "k"))

    header.write_text("#define N 1\n")
    before = key()
    header.write_text("#define N 2\n")
    assert key() != before


def test_templates_dir_exists_here():
    assert jit.templates_dir().is_dir()
