"""All eigenvalues of many symmetric matrices on a GPU, without their vectors: Pallas kernels (Triton).

cuSOLVER, which `jax.numpy.linalg.eigvalsh` calls, makes the vectors too and takes four times as long
(BUILD_NOTES, "From squares to singular values"). Here Householder reflections make each matrix tridiagonal
(Golub and Van Loan, "Matrix Computations", 4th ed., algorithm 8.3.1), and bisection finds its eigenvalues
(Barth, Martin and Wilkinson 1967, "Calculation of the eigenvalues of a symmetric tridiagonal matrix by the
method of bisection").

A reflection needs a product of the whole matrix with the vector before it, so memory sets the pace. A launch
does one reflection of all matrices, each matrix being shared out to several programs that need one another's
sums and so meet at the launch's end. Every program makes the reflection itself, from the sums of the launch
before, rather than wait for another. The rank-2 updates A - v w' - w v' are put off and written `_DELAY` at
once, as in LAPACK's `latrd` (Dongarra, Sorensen and Hammarling 1989, "Block reduction of matrices to condensed
forms for eigenvalue computations"): until then they are subtracted from products instead.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxprobe.array_typing import Array, Float

_DELAY = 4  # updates written at once
_AT_ONCE = 24  # matrices
_LAUNCHES = 32  # in a row in the compiled loop
_PROCESSORS = 132  # of an H100: about as many programs at once
_PROGRAMS = 16  # a matrix, at most
_WARPS = 8  # a program
_TILE = 8192  # numbers of the matrix that a program reads at once
_LANES, _POINTS = 64, 2  # of the bisection: eigenvalues a program, and points that cut each one's interval


def symmetric_eigenvalues(
    matrices: Float[Array, "b x x"], interpret: bool = False
) -> Float[Array, "b x"]:
    """Eigenvalues in rising order, each off by a few units of rounding of the largest; NaN where A has any.

    Args:
      matrices: finite or not. A program holds a few rows in registers, so some thousands wide at most.
      interpret: run the kernels as plain JAX, on any device.
    """

    def values(matrices: Float[Array, "b x x"]) -> Float[Array, "b x"]:
        scale = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
        scale = jnp.where(scale == 0, 1, scale)
        diagonal, beside = tridiagonal(matrices / scale, interpret)
        return bisected(diagonal, beside, interpret) * scale[:, :, 0]

    # More at once would not fit the GPU's cache, and take longer each.
    b, n, _ = matrices.shape
    groups = -(-b // _AT_ONCE)
    if groups <= 1:
        return values(matrices)
    size = -(-b // groups)
    padded = jnp.pad(matrices, ((0, groups * size - b), (0, 0), (0, 0)))
    return jax.lax.map(values, padded.reshape(groups, size, n, n)).reshape(-1, n)[:b]


def tridiagonal(
    matrices: Float[Array, "b x x"], interpret: bool = False
) -> tuple[Float[Array, "b x"], Float[Array, "b y"]]:
    """Diagonal and what stands beside it, one shorter, of similar tridiagonal matrices.

    Args:
      matrices: symmetric, the largest entry of each about 1. interpret: as for `symmetric_eigenvalues`.
    """
    b, n, _ = matrices.shape
    width = pl.next_power_of_2(n)
    programs = max(1, min(_PROGRAMS, _PROCESSORS // b))
    shapes = (n, n), (2, 2 * _DELAY, n), (2, programs, n), (3, n)
    state = (matrices, *(jnp.zeros((b, *shape), matrices.dtype) for shape in shapes[1:]))
    blocks = [pl.BlockSpec((1, *shape), lambda m, _, axes=len(shape): (m, *[0] * axes)) for shape in shapes]
    number = pl.BlockSpec((1,), lambda m, _: (0,))

    def launch(pending: int):
        return pl.pallas_call(
            partial(_reflect, pending, n, width, programs, max(1, _TILE // width), not interpret),
            grid=(b, programs),
            in_specs=[number, number, *blocks],
            out_specs=blocks,
            out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in state],
            input_output_aliases={2 + place: place for place in range(len(state))},
            compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
            interpret=interpret,
            name="reflect",
        )

    # Before column k there are updates of the columns since the last multiple of _DELAY, or _DELAY of them.
    launches = [launch((column - 1) % _DELAY + 1) for column in range(_DELAY)]

    def some(start, count: int, state):
        start = jnp.full((1,), start, jnp.int32)
        for i in range(count):  # each a call of its own: a loop's counter would be a launch more
            state = tuple(launches[i % _DELAY](start, jnp.full((1,), i, jnp.int32), *state))
        return state

    loops, rest = divmod(n, _LAUNCHES)
    state = jax.lax.fori_loop(0, loops, lambda i, state: some(i * _LAUNCHES, _LAUNCHES, state), state)
    found = some(n - rest, rest, state)[-1]
    return found[:, 0], found[:, 1, :-1]


def _reflect(
    pending, n, width, programs, height, barrier,
    start, offset, a_in, pairs_in, sums_in, found_in, a_out, pairs_out, sums_out, found_out,
):  # fmt: skip
    """One launch: ends the update of column k - 1, takes column k, and multiplies A by its vector v.

    A is `a_in` less the pairs v w' + w v' of `pending` columns, k - pending to k - 1. `pairs` holds their v and
    then their w in the rows of one of two banks, `sums` the programs' shares of A v for even and odd k, `found`
    the diagonal, what stands beside it, and 2 / v'v. No program reads what another writes in the same launch,
    but for rows that all write alike.
    """
    k, program = start[0] + offset[0], pl.program_id(1)
    columns = jnp.arange(width)
    inside, ahead = columns < n, (columns > k) & (columns < n)
    load = partial(triton.load, other=0.0)
    bank = (k - pending + _DELAY) // _DELAY % 2
    update = pending == _DELAY
    # Where the new v goes.
    bank_out, place = (1 - bank, 0) if update else (bank, pending)

    def rows_of(number):
        rows = ((k + 1) // height + program + number * programs) * height + jnp.arange(height)
        return rows, ahead[None, :] & ((rows > k) & (rows < n))[:, None]

    def tile_of(number):
        rows, there = rows_of(number)
        return load(a_in.at[0, rows[:, None], columns[None, :]], mask=there)

    first_tile = tile_of(0)  # on its way while the reflection is made
    shares = jnp.arange(pl.next_power_of_2(programs))[:, None]
    there = (shares < programs) & (inside & (columns >= k))[None, :]
    product = load(sums_in.at[0, (k + 1) % 2, shares, columns[None, :]], mask=there).sum(axis=0)
    row = load(a_in.at[0, k, columns], mask=inside)
    v = load(pairs_in.at[0, bank, pending - 1, columns], mask=inside)
    v_at_k = pairs_in[0, bank, pending - 1, k]
    factor = found_in[0, 2, jnp.maximum(k - 1, 0)]
    if pending > 1:  # the pairs that are complete; v beside w in one order and the other
        numbers = jnp.arange(2 * _DELAY)
        complete = numbers % _DELAY < pending - 1
        there = complete[:, None] & inside[None, :]
        swapped = (numbers + _DELAY) % (2 * _DELAY)
        pairs, partners = (
            load(pairs_in.at[0, bank, order[:, None], columns[None, :]], mask=there)
            for order in (numbers, swapped)
        )
        at_k = load(pairs_in.at[0, bank, numbers, k], mask=complete)
        product -= (partners * (pairs * v[None, :]).sum(axis=1)[:, None]).sum(axis=0)
        row -= (partners * at_k[:, None]).sum(axis=0)
    product = jnp.where(columns >= k, product, 0.0)
    # In this order: where v is tiny, the square of its factor would overflow.
    w = factor * product - (0.5 * factor * (factor * (product * v).sum())) * v
    row -= v_at_k * w + jnp.where(columns == k, w, 0.0).sum() * v

    x = jnp.where(ahead, row, 0.0)
    first = jnp.where(columns == k + 1, x, 0.0).sum()
    square = (x * x).sum()
    # Less than this is far below the rounding of entries about 1, and its inverse might overflow.
    live = square > jnp.finfo(x.dtype).eps ** 4
    size = jnp.sqrt(jnp.where(live, square, 1.0))
    v_new = jnp.where(live, jnp.where(columns == k + 1, x + jnp.where(first > 0, size, -size), x), 0.0)
    triton.store(pairs_out.at[0, bank_out, place, columns], v_new, mask=inside)
    triton.store(pairs_out.at[0, bank, _DELAY + pending - 1, columns], w, mask=inside)

    @pl.when(program == 0)
    def _():
        found_out[0, 0, k] = jnp.where(columns == k, row, 0.0).sum()
        found_out[0, 1, k] = jnp.where(live, jnp.where(first > 0, -size, size), first)
        found_out[0, 2, k] = jnp.where(live, 1.0 / (size * (size + jnp.abs(first))), 0.0)

    if barrier:  # the program's own threads read by rows what they wrote by columns
        triton.debug_barrier()

    by_columns = []
    if update:
        by_columns = [
            (
                load(pairs_in.at[0, bank, pair, columns], mask=inside),
                load(pairs_out.at[0, bank, _DELAY + pair, columns], mask=inside),
            )
            for pair in range(_DELAY)
        ]

    def multiply(number, carry):
        sofar, tile = carry
        rows, there = rows_of(number)
        after = tile_of(number + 1)
        by_row = partial(load, mask=rows < n)
        if update:
            for pair, (v_columns, w_columns) in enumerate(by_columns):
                v_rows = by_row(pairs_in.at[0, bank, pair, rows])
                w_rows = by_row(pairs_out.at[0, bank, _DELAY + pair, rows])
                tile -= v_rows[:, None] * w_columns[None, :] + w_rows[:, None] * v_columns[None, :]
            triton.store(a_out.at[0, rows[:, None], columns[None, :]], tile, mask=there)
        of_rows = by_row(pairs_out.at[0, bank_out, place, rows])
        return sofar + (tile * of_rows[:, None]).sum(axis=0), after

    tiles = (n + height - 1) // height - (k + 1) // height - program
    sums = jnp.zeros((width,), x.dtype)
    sums, _ = jax.lax.fori_loop(0, (tiles + programs - 1) // programs, multiply, (sums, first_tile))
    triton.store(sums_out.at[0, k % 2, program, columns], sums, mask=inside)


def bisected(
    diagonal: Float[Array, "b x"], beside: Float[Array, "b y"], interpret: bool = False
) -> Float[Array, "b x"]:
    """Eigenvalues of symmetric tridiagonal matrices in rising order, to rounding of the largest.

    Args:
      diagonal: of each. beside: what stands beside it. interpret: as for `symmetric_eigenvalues`.
    """
    b, n = diagonal.shape
    sizes = jnp.pad(jnp.abs(beside), ((0, 0), (1, 1)))
    around = sizes[:, 1:] + sizes[:, :-1]
    low, high = (diagonal - around).min(axis=1), (diagonal + around).max(axis=1)  # Gershgorin's
    norm = jnp.maximum(jnp.abs(low), jnp.abs(high))
    eps = float(jnp.finfo(diagonal.dtype).eps)
    within = jnp.stack([low - 4 * eps * norm, high + 4 * eps * norm], axis=1)
    least = jnp.maximum(eps**2 * norm, jnp.finfo(diagonal.dtype).tiny)[:, None]
    squares = jnp.pad(beside * beside, ((0, 0), (1, 0)))
    passes = math.ceil(math.log(8 / eps) / math.log(_POINTS + 1))

    def whole(length: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, length), lambda m, _: (m, 0))

    return pl.pallas_call(
        partial(_bisect, n, passes),
        grid=(b, pl.cdiv(n, _LANES)),
        in_specs=[whole(n), whole(n), whole(2), whole(1)],
        out_specs=whole(n),
        out_shape=jax.ShapeDtypeStruct((b, n), diagonal.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="bisect",
    )(diagonal, squares, within, least)


def _bisect(n, passes, diagonal, squares, within, least, out):
    """A program's eigenvalues: an interval each, cut at `_POINTS` points by how many eigenvalues lie below."""
    wanted = pl.program_id(1) * _LANES + jnp.arange(_LANES)
    least = least[0, 0]
    cuts = (1 + jnp.arange(_POINTS)).astype(least.dtype) / (_POINTS + 1)

    def cut(_, interval):
        low, high = interval
        points = low[:, None] + (high - low)[:, None] * cuts[None, :]

        def count(k, carry):  # of negative pivots of the matrix less a point
            pivot, below = carry
            pivot = diagonal[0, k] - points - squares[0, k] / pivot
            pivot = jnp.where(jnp.abs(pivot) < least, -least, pivot)
            return pivot, below + jnp.where(pivot < 0, 1, 0)

        begin = jnp.ones_like(points), jnp.zeros(points.shape, jnp.int32)
        _, below = jax.lax.fori_loop(0, n, count, begin)
        above = below > wanted[:, None]
        low = jnp.maximum(low, jnp.where(above, low[:, None], points).max(axis=1))
        return low, jnp.minimum(high, jnp.where(above, points, high[:, None]).min(axis=1))

    interval = (jnp.full((_LANES,), within[0, side]) for side in (0, 1))
    low, high = jax.lax.fori_loop(0, passes, cut, tuple(interval))
    triton.store(out.at[0, wanted], 0.5 * (low + high), mask=wanted < n)
