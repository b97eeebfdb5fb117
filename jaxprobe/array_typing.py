"""One page of axis letters: signatures everywhere read `Float[Array, "b t d"]` with these.

    b  batch: texts, or facts, together        l  layer
    t  token position (right padded)           s  random draw, set or resample
    d  width of the residual stream            k  units an edit touches; taps of the convolution
    v  vocabulary                              m  output directions: min(v, d) rows of R
    e  width of the Mamba mixer                w  width of whatever site is meant
    n  SSM state size, per unit of e           r  rank of the step-size projection
    h  attention head                          c  width of one head
    f  width of the GPT-2 MLP                  p  positions already seen (the past of a step)
    g  point of a grid: step sizes, nodes of a path, strengths, factors
    x  any length

Kernels cut finer, and say so where they do: chunks k of tokens q and s in `kernels.chunkwise`, a token p that
is attended to in `kernels.factored`.

Shapes are checked at run time in tests only (`tests/conftest.py` installs jaxtyping's import hook).
"""

from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, UInt

# A nested dictionary of arrays, as `jaxprobe.convert` builds it; per-layer leaves are stacked on axis l.
Params = dict[str, Any]

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Key", "Params", "UInt", "np"]
