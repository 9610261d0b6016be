"""Compile time by phase."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jit_support import tiny_source

from podrt.errors import PodrtError
from podrt.jit import compile_phases
from podrt.jit.phases import read_phases


def test_phases_of_a_compilation_are_those_of_nvrtc():
    phases = compile_phases(tiny_source())
    assert any("Frontend" in name for name in phases)
    assert len(phases) >= 3
    assert all(0 <= seconds < 60 for seconds in phases.values())


def test_what_nvrtc_refuses_has_no_times():
    with pytest.raises(PodrtError, match="no times of tiny1"):
        compile_phases(replace(tiny_source(), text="int bad = nothing;"))


def test_times_are_read_in_seconds_and_added_up():
    text = "File name, phase name, metric, unit\n"
    text += "a.cu, NVVM Optimizer, 403, ms\na.cu, PTX Translation, 2, s\n"
    text += "a.cu, NVVM Optimizer, 7, ms\n"
    assert read_phases(text) == pytest.approx({"NVVM Optimizer": 0.41, "PTX Translation": 2.0})
