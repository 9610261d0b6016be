"""Every knob of `podrt.Policy`: whatever is fixed, results are right."""

import pytest
from attention_case import Case, run
from gpu_support import skip_without_hopper

from podrt import HybridAttention, Policy

KNOBS = [
    Policy(serial=True),
    Policy(serial=False),
    Policy(family="portable", ratio=(1, 3)),
    Policy(family="portable", shape="small"),
    Policy(family="portable", limit_splits=False),
    Policy(family="portable", taper_decode=True),
    Policy(family="hopper", decode_only_sms=24),
    Policy(family="hopper", prefill_only_sms=24),
    Policy(family="hopper", decode_only_sms=8, prefill_only_sms=24),
    Policy(family="hopper", decode_only_sms=1024),
    Policy(family="hopper", decode_rows=8),
    Policy(family="hopper", decode_rows=16),
    Policy(family="hopper", decode_rows=32),
    Policy(family="hopper", large_prefill_tile=True),
    Policy(family="hopper", limit_splits=False),
    Policy(decode_piece_keys=256),
    Policy(taper_decode=False),
    Policy(prefill_order="head"),
    Policy(prefill_order="length"),
    Policy(max_partial_bytes=0),
    Policy(max_partial_bytes=2**20),
]
#: Prompts, decodes of one token and of several; then each side alone.
BATCHES = {
    "both": ([300, 1, 1, 2, 1, 0, 700, 1, 5], [900, 4000, 17, 333, 129, 5, 2100, 8193, 700]),
    "prefill": ([300, 700, 65], [900, 2100, 65]),
    "decode": ([1, 2, 1, 1], [4000, 333, 17, 8193]),
}


@pytest.mark.parametrize("group", [4, 12])
@pytest.mark.parametrize("policy", KNOBS, ids=repr)
def test_results_are_right_whatever_is_fixed(policy, group):
    if policy.family == "hopper":
        skip_without_hopper()
    for lengths in BATCHES.values():
        case = Case(*lengths, num_kv_heads=2, group=group, seed=group)
        attention = HybridAttention(**case.layer_arguments, policy=policy)
        case.check(*run(case, attention))
