"""What is measured on a machine is kept by GPU, driver and podrt, and only used for those."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from schedule_support import batch_of, layer_of

from podrt import knobs
from podrt.gpu.nominal import H100, H200
from podrt.policy import calibration, store
from podrt.policy.calibration import calibration_of, record_of
from podrt.policy.explain import explain
from podrt.policy.policies import Policy
from podrt.policy.schedule import Scheduler
from podrt.policy.store import NoStoreError
from podrt.policy.tuned_costs import TunedCosts, load_costs, save_costs

LONG = [2048, *[1] * 64], [16384, *[16384] * 64]
TUNED = TunedCosts(
    replace(calibration.H100.launch_costs, launch_us=21.5, source="podrt tune, today"),
    launches=50,
    error=1.02,
    held_out_error=1.03,
    shipped_error=1.1,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(store, "driver_version", lambda: "580.1")
    monkeypatch.setattr(store, "_read", {})
    with knobs.scope(cache_dir=tmp_path / "cache", disable_cache=False):
        yield tmp_path / "cache" / "tuned"


def kept() -> Path:
    path = save_costs(H100, TUNED)
    store.forget()
    return path


def test_what_is_kept_is_used_for_its_gpu_and_no_other() -> None:
    kept()
    assert load_costs(H100) == TUNED
    assert record_of(H100).kind == "tuned"
    assert calibration_of(H100).launch_costs == TUNED.costs
    assert calibration_of(H100).sm_sharing == calibration.H100.sm_sharing
    assert record_of(H200).kind == "shipped"
    for other in (
        replace(H100, name="NVIDIA H100 PCIe"),
        replace(H100, num_sms=114),
        replace(H100, memory_gbs=2039.0),
        replace(H100, l2_bytes=1 << 20),
    ):
        assert load_costs(other) is None
    assert load_costs(replace(H100, ordinal=3)) == TUNED


def test_another_driver_or_podrt_has_records_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kept()
    with monkeypatch.context() as patch:
        patch.setattr(store, "driver_version", lambda: "590.1")
        assert load_costs(H100) is None
    with monkeypatch.context() as patch:
        patch.setattr(store, "__version__", "99")
        assert load_costs(H100) is None
    assert load_costs(H100) == TUNED


def test_a_record_takes_effect_where_it_was_not_read_before() -> None:
    assert load_costs(H100) is None
    save_costs(H100, TUNED)
    assert load_costs(H100) is None  # as in a process that runs meanwhile
    store.forget()
    assert load_costs(H100) == TUNED


def test_explain_says_whose_record_it_is() -> None:
    def text() -> str:
        return str(explain(Scheduler(layer_of(), H100, Policy()), batch_of(*LONG)))

    assert "from the shipped record of an NVIDIA H100" in text()
    kept()
    assert "from the record of this NVIDIA H100 (podrt tune, today)" in text()


def test_plans_do_not_depend_on_a_record_of_costs() -> None:
    before = Scheduler(layer_of(), H100, Policy()).schedule(batch_of(*LONG))
    kept()
    after = Scheduler(layer_of(), H100, Policy()).schedule(batch_of(*LONG))
    assert before.variants == after.variants
    assert before.plan.decode_only_ctas == after.plan.decode_only_ctas


def test_a_file_is_whole_private_to_make_and_replaced(folder: Path) -> None:
    path = kept()
    assert path.parent == folder
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert json.loads(path.read_text())["owner"]["driver"] == "580.1"
    save_costs(H100, replace(TUNED, launches=3))
    store.forget()
    assert load_costs(H100) == replace(TUNED, launches=3)
    assert os.listdir(folder) == [path.name]


def _edit(path: Path, *keys: str, to: object) -> None:
    record = json.loads(path.read_text())
    part = record
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), 99),
        (("owner", "driver"), "1.2"),
        (("owner",), None),
        (("content",), []),
        (("content", "costs", "launch_us"), float("nan")),
        (("content", "costs", "launch_us"), -1),
        (("content", "costs", "launch_us"), True),
        (("content", "costs", "launch_us"), "3"),
        (("content", "costs", "read_gbs"), [1.0]),
        (("content", "costs", "read_gbs"), 1.0),
        (("content", "costs", "more"), 1.0),
        (("content", "launches"), "many"),
    ],
)
def test_a_foreign_or_bad_file_is_ignored_with_one_warning(
    keys: tuple[str, ...], value: object
) -> None:
    _edit(kept(), *keys, to=value)
    with pytest.warns(RuntimeWarning, match="are ignored") as caught:
        assert record_of(H100).kind == "shipped"
        assert record_of(H100).kind == "shipped"
    assert len(caught) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_file_is_ignored_and_can_be_replaced(content: bytes) -> None:
    path = kept()
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="podrt tune makes them again"):
        assert load_costs(H100) is None
    kept()
    assert load_costs(H100) == TUNED


def test_without_a_place_nothing_is_read_and_keeping_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept()
    with knobs.scope(disable_cache=True):
        assert record_of(H100).kind == "shipped"
        with pytest.raises(NoStoreError, match="PODRT_CACHE_DIR"):
            save_costs(H100, TUNED)
    monkeypatch.setattr(store, "driver_version", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record_of(H100).kind == "shipped"
    with pytest.raises(NoStoreError, match="driver"):
        save_costs(H100, TUNED)


def test_a_folder_that_cannot_be_made_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        knobs.scope(cache_dir=tmp_path / "file"),
        pytest.raises(NoStoreError, match="cannot be written"),
    ):
        save_costs(H100, TUNED)
