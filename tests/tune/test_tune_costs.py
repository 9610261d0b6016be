"""The fit finds a GPU's constants again, as far as predictions tell, and knows when it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tune_support import OTHER, fake_measure

from podrt.errors import UnsupportedConfigError
from podrt.gpu.arch import get_arch
from podrt.gpu.nominal import H100, H200
from podrt.policy.calibration import shipped_for
from podrt.policy.policies import parse_policy
from podrt.tune.costs import CostFit, fit_costs, variants_of
from podrt.tune.fit import Fitter, constants
from podrt.tune.launches import designed_cases, make_case
from podrt.tune.samples import Sample, schedule_of, take_samples

#: Of no case of the designed set.
UNSEEN = (
    make_case("32/8", 128, "3072@12288 + 100x6144", ("auto", "serial", "decode-only=12")),
    make_case("40/8", 128, "768@3072 + 50x3000", ("auto", "serial")),
    make_case("32/8", 64, "1500@9000 + 40x5000", ("auto", "serial")),
    make_case("16/4", 128, "3000@3000", ("auto",)),
    make_case("28/4", 128, "70x5000", ("auto",)),
    make_case("32/8", 128, "2000@18000 + 5x8000", ("decode-only=0", "serial")),
)


@pytest.fixture(scope="module")
def fit() -> CostFit:
    return fit_costs(H100, fake_measure(OTHER))


def test_predictions_are_those_of_the_gpu_whatever_it_was_fitted_to(fit: CostFit) -> None:
    assert fit.is_better
    assert fit.tuned.shipped_error > 1.2
    assert fit.tuned.error < 1.015
    assert fit.tuned.held_out_error < 1.03
    exact = take_samples(UNSEEN, H100, fake_measure(OTHER, noise=0.0))
    fitter = Fitter(H100, shipped_for(H100))
    for sample in (each for group in exact for each in group):
        assert abs(fitter.log_ratio(sample, fit.tuned.costs)) < math.log(1.05), sample.case


def test_constants_that_launches_tell_apart_are_found(fit: CostFit) -> None:
    for each in constants():
        if each.name in ("launch_us", "read_gbs", "fused_factor"):
            assert each.of(fit.tuned.costs) == pytest.approx(each.of(OTHER), rel=0.05)


@pytest.mark.parametrize(("fused_factor", "us_per_decoded_mb"), [(1.0, 16.0), (1.15, 8.0)])
def test_slower_prefill_and_hold_ups_by_decode_are_told_apart(
    fused_factor: float, us_per_decoded_mb: float
) -> None:
    other = replace(OTHER, fused_factor=fused_factor, us_per_decoded_mb=us_per_decoded_mb)
    found = fit_costs(H100, fake_measure(other)).tuned.costs
    assert found.fused_factor == pytest.approx(fused_factor, rel=0.03)
    little_decode = make_case("32/4", 128, "4096@12000 + 3x8000", ("decode-only=0",))
    ((exact,),) = take_samples([little_decode], H100, fake_measure(other, noise=0.0))
    assert abs(Fitter(H100, shipped_for(H100)).log_ratio(exact, found)) < math.log(1.015)


def test_it_says_what_was_fitted_on_what(fit: CostFit) -> None:
    assert fit.tuned.costs.gpu == H100.name
    assert fit.tuned.costs.source.startswith("podrt tune, 20")
    assert fit.shipped == shipped_for(H100).launch_costs
    assert [each.forms for each in fit.errors] == [
        "decode",
        "prefill",
        "pod",
        "prefill + decode",
        "all",
    ]
    assert sum(each.launches for each in fit.errors[:-1]) == fit.tuned.launches


def test_a_gpu_as_the_shipped_one_keeps_the_shipped_record() -> None:
    shipped = shipped_for(H200).launch_costs
    found = fit_costs(H200, fake_measure(shipped, H200, noise=0.0))
    assert found.tuned.costs == replace(
        shipped, gpu=found.tuned.costs.gpu, source=found.tuned.costs.source
    )
    assert not found.is_better


def test_what_fits_nothing_but_itself_is_not_better() -> None:
    # Times that no constants explain: each launch off by a factor of two, either way.
    found = fit_costs(
        H100,
        fake_measure(shipped_for(H100).launch_costs, noise=0.7, seed=3),
        cases=designed_cases()[:6],
    )
    assert found.tuned.error < found.tuned.shipped_error
    assert not found.is_better


def test_the_set_has_neighbours_and_all_kinds_of_launches() -> None:
    cases = designed_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert len(cases) % 2 == 0
    forms = {
        (case.head_dim, Sample("", "", schedule_of(case, H100, parse_policy(name)), 1.0).forms)
        for case in cases
        for name in case.policies
    }
    kinds = ("pod", "prefill", "decode", "prefill + decode")
    assert forms == {(head_dim, kind) for head_dim in (64, 128) for kind in kinds}
    for half in (cases[::2], cases[1::2]):
        assert {(case.head_dim, case.is_hybrid, bool(case.decode)) for case in half} == {
            (head_dim, *kind)
            for head_dim in (64, 128)
            for kind in ((True, True), (False, True), (False, False))
        }


def test_its_kernels_are_known_beforehand() -> None:
    names = [variant.name for variant in variants_of(designed_cases(), H100)]
    assert len(set(names)) == len(names)
    assert {name.partition("_")[0] for name in names} == {"pod", "prefill", "decode"}
    assert len(names) <= 12  # each takes seconds to compile


def test_only_gpus_whose_kernels_have_a_model_are_fitted() -> None:
    a100 = replace(H100, name="A100", arch=get_arch("sm_80"), num_sms=108)
    with pytest.raises(UnsupportedConfigError, match="Hopper family alone"):
        fit_costs(a100, fake_measure(OTHER))
