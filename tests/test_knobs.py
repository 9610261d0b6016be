from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from podrt import knobs


@pytest.fixture(autouse=True)
def no_podrt_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("PODRT_"):
            monkeypatch.delenv(name)


def test_defaults_hold_while_unset_or_empty(monkeypatch):
    for knob in knobs.list_knobs():
        assert knob() == knob.default
        monkeypatch.setenv(knob.variable, "")
        assert knob() == knob.default


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("Yes", True), (" on ", True), ("0", False), ("FALSE", False)]
)
def test_bool_texts(monkeypatch, text, value):
    monkeypatch.setenv("PODRT_DISABLE_JIT", text)
    assert knobs.disable_jit() is value


def test_read_when_used(monkeypatch):
    assert not knobs.jit_lineinfo()
    monkeypatch.setenv("PODRT_JIT_LINEINFO", "1")
    assert knobs.jit_lineinfo()


def test_bad_bool_names_variable_value_and_expected(monkeypatch):
    monkeypatch.setenv("PODRT_DISABLE_CACHE", "maybe")
    with pytest.raises(ValueError, match=r"PODRT_DISABLE_CACHE='maybe': expected one of 1, true"):
        knobs.disable_cache()


def test_cache_dir_is_an_absolute_path_with_home_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PODRT_CACHE_DIR", "~/kernels")
    assert knobs.cache_dir() == tmp_path / "kernels"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PODRT_CACHE_DIR", "near")
    assert knobs.cache_dir() == tmp_path / "near"


def test_cache_dir_of_an_unknown_user_is_refused(monkeypatch):
    monkeypatch.setenv("PODRT_CACHE_DIR", "~no_such_user_here/kernels")
    with pytest.raises(ValueError, match="PODRT_CACHE_DIR="):
        knobs.cache_dir()


@pytest.mark.parametrize(("text", "value"), [("0", 0), (" 4096 ", 4096)])
def test_cache_bound_is_a_number_of_bytes(monkeypatch, text, value):
    monkeypatch.setenv("PODRT_CACHE_MAX_BYTES", text)
    assert knobs.cache_max_bytes() == value


@pytest.mark.parametrize("text", ["-1", "1.5", "1GB", "yes"])
def test_bad_cache_bound_names_variable_value_and_expected(monkeypatch, text):
    monkeypatch.setenv("PODRT_CACHE_MAX_BYTES", text)
    with pytest.raises(ValueError, match=rf"PODRT_CACHE_MAX_BYTES='{text}': expected a whole"):
        knobs.cache_max_bytes()


def test_scope_overrides_and_restores_also_after_an_error(monkeypatch):
    monkeypatch.setenv("PODRT_DISABLE_JIT", "1")
    with (
        pytest.raises(RuntimeError),
        knobs.scope(cache_dir="/outer"),
        knobs.scope(disable_jit=False, cache_dir="/inner"),
    ):
        assert (knobs.disable_jit(), knobs.cache_dir()) == (False, Path("/inner"))
        raise RuntimeError
    assert (knobs.disable_jit(), knobs.cache_dir()) == (True, None)


def test_scope_with_none_means_unset(monkeypatch):
    monkeypatch.setenv("PODRT_CACHE_DIR", "/set")
    with knobs.scope(cache_dir=None):
        assert knobs.cache_dir() is None


def test_scope_refuses_unknown_names_and_bad_values():
    with pytest.raises(TypeError, match="no_knob: no such knob; known are cache_dir"):
        knobs.scope(no_knob=1).__enter__()
    with pytest.raises(ValueError, match="PODRT_JIT_VERBOSE=3"):
        knobs.scope(jit_verbose=3).__enter__()
    assert not knobs.jit_verbose()


def test_list_describes_every_knob():
    described = {knob.variable: (knob.type_name, knob.default) for knob in knobs.list_knobs()}
    assert described == {
        "PODRT_CACHE_DIR": ("path", None),
        "PODRT_CACHE_MAX_BYTES": ("int", 2**30),
        "PODRT_DISABLE_CACHE": ("bool", False),
        "PODRT_DISABLE_JIT": ("bool", False),
        "PODRT_JIT_LINEINFO": ("bool", False),
        "PODRT_JIT_VERBOSE": ("bool", False),
    }
    assert all(knob.meaning for knob in knobs.list_knobs())


def test_logger_is_silent_by_default():
    handlers = logging.getLogger("podrt").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
