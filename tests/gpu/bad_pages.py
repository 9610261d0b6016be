"""Runs batches with page numbers that are none; a process of its own, because it may hang.

PYTHONPATH=tests python tests/gpu/bad_pages.py portable|hopper [PAGE_SIZE]

Pages have 16 tokens unless a size is given.

Requests of such pages get zeros, or keys of another page; all others must be right.
"""

import sys

import numpy as np
from attention_case import Case, poisoned
from gpu_support import inputs_on_gpu

from podrt import HybridAttention

INT32 = np.iinfo(np.int32)
#: Requests 1 (decode), 3 (decode of several tokens) and 4 (prefill) get the bad page.
BAD_REQUESTS = (1, 3, 4)
LENGTHS = [1, 1, 30, 3, 40, 5], [700, 90, 90, 90, 90, 90]


def main(family, page_size=16):
    import cupy

    for head_dim in (64, 128):
        case = Case(*LENGTHS, head_dim=head_dim, page_size=page_size, seed=head_dim)
        good = np.repeat([request not in BAD_REQUESTS for request in range(6)], case.q_lens)
        inputs = inputs_on_gpu(case)
        attention = HybridAttention(**case.layer_arguments, policy=family)
        for number in (-1, INT32.min, len(case.k_cache), INT32.max):
            for column in ([2], [0], [5], range(-(-90 // page_size))):
                table = cupy.asarray(with_bad_page(case.block_table, number, column))
                attention.plan(*case.lengths, block_table=table)
                out = poisoned(case.q.shape, case.q.dtype)
                attention.run(*inputs, out=out)
                case.check(out.get()[good], rows=good)
                print(f"head_dim {head_dim}, page {number} at {list(column)}: ended", flush=True)


def with_bad_page(block_table, number, columns):
    table = block_table.copy()
    for request in BAD_REQUESTS:
        table[request, list(columns)] = number
    return table


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
