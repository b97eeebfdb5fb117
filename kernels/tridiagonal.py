"""Symmetric matrices made tridiagonal on a GPU: a Pallas kernel (Triton).

Householder reflections (Golub and Van Loan, "Matrix Computations", 4th ed., algorithm 8.3.1). Each needs a
product of the whole matrix with the vector before it, so memory sets the pace. A launch does one reflection
of all matrices, each shared out to several programs that need one another's sums and so meet at the launch's
end. Every program makes the reflection itself, from the sums of the launch before, rather than wait for
another. The rank-2 updates A - v w' - w v' are put off and written `_DELAY` at once, as in LAPACK's `latrd`
(Dongarra, Sorensen and Hammarling 1989, "Block reduction of matrices to condensed forms for eigenvalue
computations"): until then they are subtracted from products instead.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

_DELAY = 4  # updates written at once
_LAUNCHES = 32  # in a row in the compiled loop
_PROCESSORS = 132  # of an H100: about as many programs at once
_PROGRAMS = 16  # a matrix, at most
_WARPS = 8  # a program
_TILE = 8192  # numbers of the matrix that a program reads at once


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
    blocks = [_of_matrix(shape) for shape in shapes]
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


def _of_matrix(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec((1, *shape), lambda m, _: (m, *[0] * len(shape)))


def _reflect(
    pending, n, width, programs, height, barrier,
    start, offset, a_in, pairs_in, sums_in, found_in, a_out, pairs_out, sums_out, found_out,
):  # fmt: skip
    """One launch: ends the update of column k - 1, takes column k, and multiplies A by its vector v.

    A is `a_in` less the pairs v w' + w v' of `pending` columns, k - pending to k - 1. `pairs` holds their v
    and then their w in the rows of one of two banks, `sums` the programs' shares of A v for even and odd k,
    `found` the diagonal, what stands beside it, and 2 / v'v. No program reads what another writes in the same
    launch, but for rows that all write alike.
    """
    k, program = start[0] + offset[0], pl.program_id(1)
    columns = jnp.arange(width)
    inside, ahead = columns < n, (columns > k) & (columns < n)
    load = partial(triton.load, other=0.0)
    bank = (k - pending + _DELAY) // _DELAY % 2
    update = pending == _DELAY
    # Where the new v goes.
    bank_out, place = (1 - bank, 0) if update else (bank, pending)

    # Row k, which all programs read, is not written: what another has done to it would be done twice.
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

    by_columns = [
        (
            load(pairs_in.at[0, bank, pair, columns], mask=inside),
            load(pairs_out.at[0, bank, _DELAY + pair, columns], mask=inside),
        )
        for pair in range(_DELAY if update else 0)
    ]

    def multiply(number, carry):
        sofar, tile = carry
        rows, there = rows_of(number)
        after = tile_of(number + 1)
        by_row = partial(load, mask=rows < n)
        for pair, (v_columns, w_columns) in enumerate(by_columns):
            v_rows = by_row(pairs_in.at[0, bank, pair, rows])
            w_rows = by_row(pairs_out.at[0, bank, _DELAY + pair, rows])
            tile -= v_rows[:, None] * w_columns[None, :] + w_rows[:, None] * v_columns[None, :]
        if update:
            triton.store(a_out.at[0, rows[:, None], columns[None, :]], tile, mask=there)
        of_rows = by_row(pairs_out.at[0, bank_out, place, rows])
        return sofar + (tile * of_rows[:, None]).sum(axis=0), after

    tiles = (n + height - 1) // height - (k + 1) // height - program
    sums = jnp.zeros((width,), x.dtype)
    sums, _ = jax.lax.fori_loop(0, (tiles + programs - 1) // programs, multiply, (sums, first_tile))
    triton.store(sums_out.at[0, k % 2, program, columns], sums, mask=inside)
