"""Loops over the arrays of `trees`, compiled by numba. Importing this module takes a third of a second.

The machine code is kept on disk, beside this file or in NUMBA_CACHE_DIR. Sums are added in the order of the trees and
in the precision of the leaves, without fused or reordered operations: they equal those of the libraries bit for bit.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import njit
from numba.cpython.unsafe import numbers

Array = np.ndarray[Any, Any]

# The intrinsic; its annotations are those of a function that takes a compiler's context, too.
count_low_zeros = cast(Callable[[Any], int], numbers.trailing_zeros)


compile_cached = cast(Callable[[Callable[..., Any]], Any], njit(cache=True, error_model="numpy", nogil=True))


@compile_cached
def code_values(values: Array, thresholds: Array, codes: Array, column: int) -> None:
    """Write the code of each value, one plus the number of thresholds below it and 0 if it is missing.

    `thresholds` is sorted, and padded with infinities to a length of 2**k - 1; `codes` has the shape (blocks, columns,
    rows of a block). The binary search takes one step for all rows of a block before the next step, so that the
    compiler uses vector instructions, and there is nothing to mispredict.
    """
    size, first = codes.shape[2], (len(thresholds) + 1) // 2
    below = np.empty(size, np.int64)
    for block in range(codes.shape[0]):
        start = block * size
        count = min(size, len(values) - start)
        below[:] = 0
        step = first
        while step:
            for i in range(count):
                below[i] += step if thresholds[below[i] + step - 1] < values[start + i] else 0
            step //= 2
        for i in range(count):
            is_missing = math.isnan(values[start + i])
            codes[block, column, i] = 0 if is_missing else below[i] + 1


@compile_cached
def sum_by_bits(codes: Array, offsets: Array, tables: Array, leaves: Array, sums: Array) -> None:
    """Add the leaves of each row to `sums`, shape (blocks, rows of a block), by bit vectors.

    `tables`, shape (groups of trees, codes of all columns, trees of a group), has a bit for each leaf that a code
    still allows, the leftmost lowest; `leaves` has the shape (trees, bits). The tables of a group stay in the cache.
    """
    columns, trees, bits = codes.shape[1], tables.shape[2], leaves.shape[1]
    allowed, values = np.empty(trees, tables.dtype), leaves.ravel()
    for block in range(codes.shape[0]):
        for group in range(tables.shape[0]):
            first = group * trees
            for row in range(codes.shape[2]):
                allowed[:] = tables[group, codes[block, 0, row]]
                for column in range(1, columns):
                    code = offsets[column] + codes[block, column, row]
                    for tree in range(trees):
                        allowed[tree] &= tables[group, code, tree]
                total = sums[block, row]
                for tree in range(min(trees, len(leaves) - first)):
                    total += values[(first + tree) * bits + np.int64(count_low_zeros(allowed[tree]))]
                sums[block, row] = total


@compile_cached
def sum_by_steps(
    codes: Array, roots: Array, depths: Array, nodes: Array, children: Array, leaves: Array, sets: Array, sums: Array
) -> None:
    """Add the leaves of each row to `sums`, shape (blocks, rows of a block), one step down a tree for all rows at once.

    A node has, from the lowest bit, 16 bits of a limit, 1 of an offset, 14 of a column, and 1 that says that the limit
    is a row of `sets`. A row goes right if its code less the offset, as an unsigned number, is above the limit, or if
    the set says so. `children` are the left ones; the right one is the next node, and a leaf is its own left child.
    """
    size, has_sets = codes.shape[2], sets.shape[0] > 1
    at = np.empty(size, np.int32)
    for block in range(codes.shape[0]):
        values = codes[block].ravel()
        for tree in range(len(roots)):
            at[:] = roots[tree]
            for _ in range(depths[tree]):
                for i in range(size):
                    node = nodes[at[i]]
                    limit = node & np.uint32(0xFFFF)
                    code = np.uint32(values[np.int64((node >> np.uint32(17)) & np.uint32(0x3FFF)) * size + i])
                    above = ((code - ((node >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF)) > limit
                    is_right = np.int32(above)
                    if has_sets:
                        is_set = node >> np.uint32(31)  # row 0 of `sets` is that of all other nodes
                        found = np.int32(sets[np.int64(limit * is_set), np.int64(code * is_set)])
                        is_right = found | (is_right & (np.int32(is_set) ^ np.int32(1)))
                    at[i] = children[at[i]] + is_right
            for i in range(size):
                sums[block, i] += leaves[at[i]]


@compile_cached
def apply_link(sums: Array, one: Any, scale: Any, limit: Any) -> None:  # noqa: ANN401 (numbers of the type of the sums)
    """Compute 1 / (1 + exp(min(-scale * sum, limit))) in place, as the libraries do and in their precision."""
    flat = sums.ravel()
    for i in range(len(flat)):
        flat[i] = one / (one + math.exp(min(-scale * flat[i], limit)))


@compile_cached
def compute_log_odds(probability: Any) -> Any:  # noqa: ANN401 (float32)
    """Return log(p / (1 - p)) as XGBoost computes it."""
    one = np.float32(1)
    return -math.log(one / probability - one)
