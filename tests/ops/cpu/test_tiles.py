"""How a batch is cut into tiles."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.ops.cpu.tiles import pad_axis, tile_size

counts = st.integers(1, 60)


@given(batch=counts, rows=counts, columns=counts, capacity=st.integers(0, 20_000))
def test_tiles_hold_no_more_than_they_may(batch, rows, columns, capacity):
    pictures, tile_rows = tile_size(batch, rows, columns, capacity)
    assert batch % pictures == 0
    assert 1 <= tile_rows <= rows
    assert pictures * tile_rows * columns <= max(capacity, columns)
    assert pictures == 1 or tile_rows == rows


def test_tiles_waste_few_rows():
    assert tile_size(4, 10, 10, 99) == (1, 5)
    assert tile_size(4, 32, 40, 9 * 40) == (1, 8)
    assert tile_size(4, 10, 10, 100) == (1, 10)
    assert tile_size(4, 10, 10, 399) == (2, 10)
    assert tile_size(4, 10, 10, 400) == (4, 10)


def test_padding_behind_may_cut_off():
    x = np.arange(1, 4, dtype=np.float32)[None]
    np.testing.assert_array_equal(pad_axis(x, 1, 1, 5), [[0, 1, 2, 3, 0]])
    np.testing.assert_array_equal(pad_axis(x, 1, 0, 2), [[1, 2]])
    np.testing.assert_array_equal(pad_axis(x, 1, 1, 2), [[0, 1]])
