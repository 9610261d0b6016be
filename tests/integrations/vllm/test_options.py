"""What users ask of podrt in vLLM's configuration, batch invariance among it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="needs vllm: make vllm-test")

from backend_support import MODEL, common, impl_of

from podrt.errors import UnsupportedConfigError
from podrt.integrations.vllm.backend import PodrtBackend
from podrt.integrations.vllm.options import is_deterministic, policy_of
from podrt.policy.policies import Policy

pytestmark = pytest.mark.usefixtures("config")


def test_the_policy_comes_from_vllms_additional_config(config: Any) -> None:
    assert policy_of(config) == "auto"
    config.additional_config = {"podrt": {"policy": "serial"}}
    assert policy_of(config) == "serial"
    config.additional_config = {"podrt": {"policy": {"family": "hopper", "serial": True}}}
    assert policy_of(config) == Policy(family="hopper", serial=True)


@pytest.mark.parametrize(
    ("policy", "pairs"),
    [
        ("serial", False),
        ({"serial": True}, False),
        ({"family": "hopper", "head_pairs": True}, True),
    ],
    ids=str,
)
def test_plans_are_for_heads_that_are_no_pairs(
    config: Any, make_builder: Any, policy: Any, pairs: bool
) -> None:
    """A head's values lie between its keys and those of the next one."""
    config.additional_config = {"podrt": {"policy": policy}}
    found = [attention.options["policy"] for attention in make_builder().attentions.values()]
    assert [each.head_pairs for each in found] == [pairs]
    assert [each.serial for each in found] == [policy == "serial" or policy.get("serial")]


@pytest.mark.parametrize("options", [{"polcy": "auto"}, "serial", {"policy": {"colour": "red"}}])
def test_options_that_there_are_not_are_refused(config: Any, options: Any) -> None:
    config.additional_config = {"podrt": options}
    with pytest.raises(UnsupportedConfigError, match="podrt"):
        policy_of(config)


# Batch invariance.


@pytest.fixture
def batch_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"deterministic": False}, False),
        ({"deterministic": True}, True),
        ({"deterministic": True, "policy": "serial"}, True),
        ({"policy": {"deterministic": True}}, True),
    ],
)
def test_podrts_own_option_asks_for_batch_invariance(
    config: Any, make_builder: Any, options: dict[str, Any], expected: bool
) -> None:
    config.additional_config = {"podrt": options}
    builder = make_builder()
    assert [a.options["deterministic"] for a in builder.attentions.values()] == [expected]
    assert [entry["deterministic"] for entry in builder.describe()] == [expected]


@pytest.mark.usefixtures("batch_invariant")
def test_vllms_own_mode_asks_for_it(make_builder: Any, config: Any) -> None:
    assert PodrtBackend.supports_batch_invariance()
    for options in ({}, {"policy": "hopper"}, {"deterministic": True}):
        config.additional_config = {"podrt": options}
        assert is_deterministic(config)
        assert make_builder().describe()[0]["deterministic"]
    config.additional_config = {"podrt": {"deterministic": False}}
    with pytest.raises(UnsupportedConfigError, match=r"deterministic=False.*VLLM_BATCH_INVARIANT"):
        make_builder()


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("scheduler_config", "enable_chunked_prefill", True),
        ("cache_config", "enable_prefix_caching", True),
        (None, "speculative_config", SimpleNamespace()),
    ],
)
def test_others_must_not_decide_what_is_computed_together(
    config: Any, part: str | None, name: str, value: Any
) -> None:
    """Unless podrt's own option says that this is known."""
    setattr(getattr(config, part) if part else config, name, value)
    with pytest.raises(UnsupportedConfigError, match=f"{MODEL}.*VLLM_BATCH_INVARIANT=1.*{name}"):
        impl_of()
    config.additional_config = {"podrt": {"deterministic": True}}
    impl_of()


@pytest.mark.parametrize("value", [1, "yes", []])
def test_other_values_of_the_option_are_refused(config: Any, value: Any) -> None:
    config.additional_config = {"podrt": {"deterministic": value}}
    with pytest.raises(UnsupportedConfigError, match="deterministic="):
        is_deterministic(config)


def test_unknown_lengths_are_the_longest_where_others_must_not_matter(
    make_builder: Any, config: Any
) -> None:
    config.additional_config = {"podrt": {"deterministic": True}}
    builder = make_builder()
    builder.build(0, common(seq_lens_cpu_upper_bound=None))
    (attention,) = builder.attentions.values()
    assert attention.plans[0][1].tolist() == [512, 512, 512]
