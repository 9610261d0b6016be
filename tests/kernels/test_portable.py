"""Host side of the portable family: grid, argument block and source."""

from __future__ import annotations

import dataclasses
import re

from podrt.jit import templates_dir
from podrt.kernels.portable.host import num_ctas, source_of
from podrt.kernels.portable.presets import variant

FUSED = variant("pod", "sm_90a", "bfloat16", 128, page_size=16)


def test_grid_is_what_fits_on_the_gpu() -> None:
    assert num_ctas(FUSED, 5000, 5000, 132) == 132 * FUSED.ctas_per_sm


def test_grid_has_no_cta_without_work() -> None:
    assert FUSED.warps == 4
    assert num_ctas(FUSED, 3, 9, 132) == 3 + 3  # four decode units to a CTA
    assert num_ctas(FUSED, 0, 1, 132) == 1
    assert num_ctas(FUSED, 0, 0, 132) == 0


def test_a_form_takes_its_own_side_only() -> None:
    prefill, decode = (dataclasses.replace(FUSED, form=form) for form in ("prefill", "decode"))
    assert num_ctas(prefill, 7, 100, 132) == 7
    assert num_ctas(decode, 7, 100, 132) == 25


def test_source_is_the_named_kernel_of_the_config() -> None:
    source = source_of(FUSED)
    assert (source.name, source.arch, source.entry) == (FUSED.name, "sm_90a", FUSED.name)
    bounds = f"__launch_bounds__({FUSED.threads}, {FUSED.ctas_per_sm})"
    assert f'extern "C" __global__ void {bounds}\n{FUSED.name}(' in source.text
    assert "using Element = Bf16;" in source.text


def test_source_does_not_depend_on_where_the_templates_lie() -> None:
    assert str(templates_dir()) not in source_of(FUSED).text


def test_lone_forms_leave_the_other_side_out() -> None:
    decode = source_of(dataclasses.replace(FUSED, form="decode")).text
    assert "kHasPrefill = false;" in decode
    assert re.search(r"//\s+prefill\s+Q", decode) is None
