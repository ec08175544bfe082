"""Groups of similar pixels: compiled loops over one level of one image. `trainables.partition` says what they compute.

Only pixels in cells that touch, of a grid on the two dimensions of greatest variance, can be similar. Of these, pairs
that are connected already are passed over, and a comparison ends at the first partial sum beyond the limit. Groups are
grown by union-find; the first pixel of a group, row by row, stands for it.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6
"""What differs by less than this share of the largest norm is equal."""
FEW = 32
"""Pixels of a parent group up to which all pairs are compared."""
CELLS_PER_PIXEL = 8

Array = NDArray[np.float64]
Pixels = NDArray[np.float32]
Labels = NDArray[np.int32]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def similar_groups(
    points: Array, rows: Array, columns: Array, parents: Labels, step: int, gamma: float, scratch: Pixels
) -> Labels:
    """Groups [H, W] of a level: 0, 1, … in the order of their first pixels.

    Args:
        points: [h, w, d] native pixels.
        rows, columns: [H, h] and [W, w], what each native row and column adds to the level's.
        parents: groups of the level before; the parent of the pixel (i, j) is parents[i // step, j // step].
        gamma: γ, not negative.
        scratch: [at least H·W, d], overwritten.
    """
    height, width = rows.shape[0], columns.shape[0]
    pixels = scratch[: height * width]
    norms = _interpolate(points, rows, columns, pixels)
    limit = gamma * norms.std() + ROUNDING * norms.max()
    square = limit * limit
    owner = np.empty(height * width, dtype=np.int32)
    root = np.arange(height * width).astype(np.int32)
    for i in range(height):
        for j in range(width):
            here = i * width + j
            owner[here] = parents[i // step, j // step]
            if j > 0 and owner[here] == owner[here - 1] and _similar(pixels, here - 1, here, square):
                _join(root, here - 1, here)
            if i > 0 and owner[here] == owner[here - width] and _similar(pixels, here - width, here, square):
                _join(root, here - width, here)
    for pixel in range(height * width):
        root[pixel] = _find(root, pixel)
    by_group, _ = _sorted(np.arange(height * width).astype(np.int32), root, height * width)
    by_parent, starts = _sorted(by_group, owner, parents.max() + 1)
    for parent in range(len(starts) - 1):
        begin, end = starts[parent], starts[parent + 1]
        if end - begin > FEW:
            _join_in_grid(pixels, root, by_parent[begin:end], limit)
        else:
            _join_all(pixels, root, by_parent, begin, end, square)
    return _numbered(root).reshape(height, width)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _interpolate(points: Array, rows: Array, columns: Array, pixels: Pixels) -> Array:
    """Fills `pixels` [H·W, d] and returns their norms. A pixel is a function of its weights alone, bit for bit."""
    height, width, dims = rows.shape[0], columns.shape[0], points.shape[2]
    line = np.empty(points.shape[1:])
    norms = np.empty(height * width)
    sums = np.empty(dims)
    for i in range(height):
        line[:] = 0.0
        for r in range(points.shape[0]):
            if rows[i, r] != 0.0:
                line += rows[i, r] * points[r]
        for j in range(width):
            sums[:] = 0.0
            for c in range(points.shape[1]):
                if columns[j, c] != 0.0:
                    for d in range(dims):
                        sums[d] += columns[j, c] * line[c, d]
            total = 0.0
            for d in range(dims):
                total += sums[d] * sums[d]
                pixels[i * width + j, d] = sums[d]
            norms[i * width + j] = np.sqrt(total)
    return norms


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find(root: Labels, pixel: int) -> int:
    """The first pixel of the group, row by row, which stands for it; paths are halved on the way."""
    while root[pixel] != pixel:
        root[pixel] = root[root[pixel]]
        pixel = root[pixel]
    return pixel


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _join(root: Labels, one: int, other: int) -> None:
    """Makes one group of two."""
    first, second = _find(root, one), _find(root, other)
    if first < second:
        root[second] = first
    else:
        root[first] = second


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _similar(pixels: Pixels, one: int, other: int, square: float) -> bool:
    """Whether the squared distance is `square` at most."""
    total = 0.0
    for d in range(pixels.shape[1]):
        difference = pixels[one, d] - pixels[other, d]
        total += difference * difference
        if total > square:
            return False
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _join_in_grid(pixels: Pixels, root: Labels, members: Labels, limit: float) -> None:
    """Joins all similar pixels of a parent group: those in one cell, or in two that touch, of a grid.

    Its cells are at least `limit` wide. `members` stand by their groups, and do so in each cell.
    """
    cells, num_rows, num_columns = _cells(pixels, members, limit)
    places, starts = _sorted(np.arange(len(members)).astype(np.int32), cells, num_rows * num_columns)
    members = members[places]
    square = limit * limit
    for row in range(num_rows):
        for column in range(num_columns):
            cell = row * num_columns + column
            if starts[cell] == starts[cell + 1]:
                continue
            for across, down in ((0, 0), (1, 0), (-1, 1), (0, 1), (1, 1)):
                if 0 <= column + across < num_columns and row + down < num_rows:
                    _join_cells(pixels, root, members, starts, cell, cell + down * num_columns + across, square)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _join_cells(
    pixels: Pixels, root: Labels, members: Labels, starts: Labels, cell: int, other_cell: int, square: float
) -> None:
    """Joins each group of pixels in one cell with each in the other where two of their pixels there are similar."""
    end = starts[cell]
    while end < starts[cell + 1]:
        begin, end = end, _run_end(root, members, end, starts[cell + 1])
        other_end = starts[other_cell]
        while other_end < starts[other_cell + 1]:
            other_begin, other_end = other_end, _run_end(root, members, other_end, starts[other_cell + 1])
            one, other = members[begin], members[other_begin]
            if _find(root, one) != _find(root, other) and _have_similar(
                pixels, members, begin, end, other_begin, other_end, square
            ):
                _join(root, one, other)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _run_end(root: Labels, members: Labels, begin: int, end: int) -> int:
    """Where members[begin:end] stop being all of one group."""
    group = _find(root, members[begin])
    following = begin + 1
    while following < end and _find(root, members[following]) == group:
        following += 1
    return following


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _have_similar(
    pixels: Pixels, members: Labels, begin: int, end: int, other_begin: int, other_end: int, square: float
) -> bool:
    for one in range(begin, end):
        for other in range(other_begin, other_end):
            if _similar(pixels, members[one], members[other], square):
                return True
    return False


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _join_all(pixels: Pixels, root: Labels, members: Labels, begin: int, end: int, square: float) -> None:
    """Joins all similar pixels of members[begin:end]."""
    for one in range(begin, end):
        for other in range(one + 1, end):
            first, second = members[one], members[other]
            if _find(root, first) != _find(root, second) and _similar(pixels, first, second, square):
                _join(root, first, second)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _sorted(members: Labels, keys: Labels, num_keys: int) -> tuple[Labels, Labels]:
    """`members` by their keys in [0, num_keys), equal ones in the order they had; where each key starts."""
    starts = np.zeros(num_keys + 1, dtype=np.int32)
    for member in members:
        starts[keys[member] + 1] += 1
    for key in range(num_keys):
        starts[key + 1] += starts[key]
    following = starts.copy()
    found = np.empty_like(members)
    for member in members:
        found[following[keys[member]]] = member
        following[keys[member]] += 1
    return found, starts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _cells(pixels: Pixels, members: Labels, limit: float) -> tuple[Labels, int, int]:
    """Each member's cell, and the grid's rows and columns: not more than CELLS_PER_PIXEL for each member."""
    cells = np.zeros(len(members), dtype=np.int32)
    sides = np.ones(2, dtype=np.int64)
    most = np.sqrt(CELLS_PER_PIXEL * len(members))
    for axis in range(min(2, pixels.shape[1])):
        low = high = pixels[members[0], axis]
        for member in members:
            low, high = min(low, pixels[member, axis]), max(high, pixels[member, axis])
        width = max(limit, (high - low) / most)
        if width > 0.0:
            sides[axis] = int((high - low) / width) + 1
            for i in range(len(members)):
                cells[i] = cells[i] * sides[axis] + int((pixels[members[i], axis] - low) / width)
    return cells, sides[0], sides[1]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _numbered(root: Labels) -> Labels:
    """Groups 0, 1, … in the order of their first pixels."""
    numbers = np.empty(len(root), dtype=np.int32)
    following = 0
    for pixel in range(len(root)):
        found = _find(root, pixel)
        if found == pixel:
            numbers[pixel] = following
            following += 1
        else:
            numbers[pixel] = numbers[found]
    return numbers
