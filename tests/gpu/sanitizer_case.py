"""A small batch for compute-sanitizer, which is too slow for the tests proper.

compute-sanitizer --tool memcheck  --error-exitcode 9 python tests/gpu/sanitizer_case.py
compute-sanitizer --tool racecheck --error-exitcode 9 python tests/gpu/sanitizer_case.py

Head dims may be named (``sanitizer_case.py 128``); all of them without.
"""

import sys

from attention_case import Case, run

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.kernels.hopper.config import HEAD_DIMS, HOPPER_ARCH

PORTABLE = ("1:1", "portable-serial")
HOPPER = ("auto", "serial", "decode-only=1", "prefill-only=1")


def main(head_dims):
    hopper_head_dims = HEAD_DIMS if current_device().arch.name == HOPPER_ARCH else ()
    for head_dim in head_dims:
        for page_size in (None, 16):
            for policy in (*PORTABLE, *(HOPPER if head_dim in hopper_head_dims else ())):
                case = Case(
                    [1, 40, 1, 0, 2, 20],
                    [1300, 70, 17, 5, 40, 2300],
                    num_kv_heads=1,
                    head_dim=head_dim,
                    page_size=page_size,
                    seed=head_dim,
                )
                attention = HybridAttention(**case.layer_arguments, policy=policy)
                steps, lse_error = case.check(*run(case, attention))
                names = ", ".join(config.name for config in attention.variants)
                print(f"{policy}: {steps:.2f} steps, LSE {lse_error:.1e}: {names}", flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or (64, 128, 256))
