"""Kernels find the units of prefill in whatever order they are handed out."""

import numpy as np
import pytest
from attention_case import Case, run
from gpu_support import skip_without_hopper

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.plan import MAX_RUNS, KeySharing
from podrt.policy import schedule
from podrt.policy.policies import parse_policy
from podrt.spec.batch import HybridBatch

cupy = pytest.importorskip("cupy")

PROMPTS = [(700, 900), (33, 2000), (512, 512), (130, 1300), (257, 3000)]
DECODES = [(1, 1), (1, 900), (1, 2500)]
#: More prompts than there are runs, and some with nothing to do.
MANY = [(40 + 7 * number, 60 + 31 * number) for number in range(MAX_RUNS + 9)] + [(0, 50), (60, 0)]


@pytest.fixture(autouse=True)
def nothing_stays_in_l2(monkeypatch):
    """Order small batches too."""
    monkeypatch.setattr(schedule, "key_sharing_on", lambda gpu: KeySharing(0, 1))


def runs_of(case, policy):
    """How many runs a plan of the case has."""
    layer = HybridAttention(**case.layer_arguments, policy=policy).layer
    batch = HybridBatch.contiguous(*case.lengths)
    scheduler = schedule.Scheduler(layer, current_device(), parse_policy(policy))
    return len(scheduler.schedule(batch).plan.prefill_runs)


def checked(requests, policy, **arguments):
    shuffled = [requests[i] for i in np.random.default_rng(3).permutation(len(requests))]
    q_lens, kv_lens = map(list, zip(*shuffled, strict=True))
    if parse_policy(policy).family == "hopper":
        skip_without_hopper()
    case = Case(q_lens, kv_lens, **arguments)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    case.check(*run(case, attention))
    return runs_of(case, policy)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("heads", [2, 3, 8])
@pytest.mark.parametrize(
    "policy", ["portable", "hopper", "hopper-serial", "decode-only=40", "prefill-only=40"]
)
def test_prompts_head_by_head(policy, heads, page_size, causal):
    requests = PROMPTS + DECODES
    runs = checked(requests, policy, num_kv_heads=heads, page_size=page_size, causal=causal)
    assert runs == len(PROMPTS)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("policy", ["portable", "hopper"])
@pytest.mark.parametrize("decodes", [[], DECODES], ids=["prefill alone", "both"])
def test_more_prompts_than_runs(policy, head_dim, decodes):
    assert checked(MANY + decodes, policy, num_kv_heads=2, head_dim=head_dim) == MAX_RUNS


@pytest.mark.parametrize("policy", ["portable", "hopper", "splits=vanilla"])
def test_pieces_of_split_prompts(policy):
    assert checked([(300, 20000), (200, 7000)], policy, num_kv_heads=2) > 0
