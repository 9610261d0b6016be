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


def test_header_digest_follows_includes_of_includes(templates):
    inner, outer = templates / "common" / "inner.cuh", templates / "outer.cuh"
    inner.write_text("int a;")
    outer.write_text('#pragma once\n  #  include "common/inner.cuh"\n')
    text = '#include "outer.cuh"\n'
    before = jit.header_digest(text)
    assert jit.header_digest(text) == before
    inner.write_text("int b;")
    assert jit.header_digest(text) != before


def test_header_digest_ignores_headers_that_are_not_included(templates):
    before = jit.header_digest("int x;")
    (templates / "other.cuh").write_text("int y;")
    assert jit.header_digest('int x; // #include "gone.cuh"') == before


def test_headers_may_include_each_other(templates):
    (templates / "a.cuh").write_text('#include "b.cuh"\n')
    (templates / "b.cuh").write_text('#include "a.cuh"\n')
    assert jit.header_digest('#include "a.cuh"') == jit.header_digest('#include "b.cuh"')


def test_missing_header_is_named_with_who_wants_it(templates):
    (templates / "a.cuh").write_text('#include "common/none.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r'"common/none.cuh" in a.cuh'):
        jit.header_digest('#include "a.cuh"')


def test_edited_header_changes_the_key(templates):
    header = templates / "a.cuh"
    header.write_text("#define N 1\n")
    source = jit.KernelSource("k", "sm_90a", '#include "a.cuh"\n', "k")
    before = jit.cache_key(source)
    header.write_text("#define N 2\n")
    assert jit.cache_key(source) != before


def test_templates_dir_exists_here():
    assert jit.templates_dir().is_dir()
