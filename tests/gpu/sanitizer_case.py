"""A small batch for compute-sanitizer, which is too slow for the tests proper.

compute-sanitizer --tool memcheck  --error-exitcode 9 python tests/gpu/sanitizer_case.py
compute-sanitizer --tool racecheck --error-exitcode 9 python tests/gpu/sanitizer_case.py
"""

from attention_case import Case, run

from podrt import HybridAttention


def main():
    for head_dim in (64, 128, 256):
        for page_size in (None, 16):
            for policy in ("1:1", "portable-serial", "auto", "serial"):
                case = Case(
                    [1, 40, 1, 0, 2],
                    [1300, 70, 17, 5, 40],
                    num_kv_heads=1,
                    head_dim=head_dim,
                    page_size=page_size,
                    seed=head_dim,
                )
                attention = HybridAttention(**case.layer_arguments, policy=policy)
                steps, lse_error = case.check(*run(case, attention))
                names = ", ".join(config.name for config in attention.variants)
                print(f"{steps:.2f} steps, LSE {lse_error:.1e}: {names}")


if __name__ == "__main__":
    main()
