"""One factor for two metrics: of the logits, and, with its first row made smaller, of the centred logits.

It is the same for all texts, so it is made once, on the host, in float64: there is next to nothing to
compile, and W in float32 needs no QR there (`_spectrum`).
"""

import concurrent.futures
from collections.abc import Callable, Iterator

import jax

from jaxprobe.array_typing import Array, Float, Params, np
from jaxprobe.models import LanguageModel
from jaxprobe.runtime import lapack_threads

_ROWS = 2048  # of W, or twice its columns if that is more, in one piece of work


def split_factor(lm: LanguageModel, params: Params) -> tuple[Float[Array, "m d"], Float[Array, ""]]:
    """R of the metric logits, and w: with its first row times sqrt(w), R is a factor of the metric centred.

    Let C = Sigma V^T be a factor of the metric centred, and s = sqrt(v) times the mean row of W = C^T b. Then
    W^T W = C^T C + s s^T = C^T (I + b b^T) C: what a common offset adds is along b. A reflection of C's rows
    takes b to the first axis; the first row, stretched by sqrt(1 + b^T b), is then all that sees an offset,
    and w = 1 / (1 + b^T b). So both metrics' norms are sums of squares of one Jacobian, where ||J||^2 less
    the offset's part would cancel. (Where C lacks a rank, a row of it is free, and b may have no end: s
    itself takes that row's place.)

    Args:
      lm: the model. params: its parameters.

    Returns:
      R and w in W's dtype; nan where W is not finite.
    """
    W = np.asarray(lm.unembedding(params))
    v, d = W.shape
    m = min(v, d)
    mean = W.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        return _put(np.full((m, d), np.nan), np.array(np.nan), W.dtype)
    mean += sum(_pieces(W, mean, lambda rows: rows.sum(axis=0))) / v  # numpy sums a column one by one
    s = np.sqrt(v) * mean
    sigma, Vt = _spectrum(W, mean)
    limits, largest = np.finfo(W.dtype), sigma[0] if sigma[0] > 0 else np.linalg.norm(s)
    least = max(m, d) * limits.eps * largest + limits.tiny
    part = Vt @ s
    if sigma[-1] <= least:
        part[-1] = np.hypot(part[-1], np.linalg.norm(s - part @ Vt))
    b = part / np.maximum(sigma, least)
    size = np.linalg.norm(b)
    axis = b / size if size > 0 else np.eye(m)[0]
    mirror = axis + np.eye(m)[0] * (-1 if axis[0] < 0 else 1)
    C = sigma[:, None] * Vt
    R = C - np.outer(2 * mirror / (mirror @ mirror), mirror @ C)
    # s / ||b|| is the same row as axis C, and the one of the two that is had without error where it matters.
    R[0] = s * np.sqrt(1 + 1 / size**2) if size > 1 else np.sqrt(1 + size**2) * (axis @ C)
    return _put(R, np.array(1 / (1 + size**2)), W.dtype)


def _put(R, weight, dtype):
    return jax.device_put((R.astype(dtype), weight.astype(dtype)))  # as it is: JAX's own cast is a program


def _spectrum(
    W: Float[np.ndarray, "v d"], mean: Float[np.ndarray, " d"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
    """Singular values and right vectors of W less its mean row, largest first.

    Of float32 numbers the Gram matrix in float64 tells more than their QR in float32: with U and u the two
    unit roundoffs it is off by U ||W||^2, so a singular value sigma by the smaller of U ||W||^2 / sigma and
    sqrt(U) ||W|| = 1e-8 ||W||, where the QR is off by u ||W|| = 6e-8 ||W||.
    """
    m = min(W.shape)
    if W.dtype == np.float32:
        values, V = np.linalg.eigh(sum(_pieces(W, mean, lambda rows: rows.T @ rows)))
        return np.sqrt(np.maximum(values[::-1][:m], 0)), V.T[::-1][:m]
    # Sequential TSQR would do as well; in two steps the pieces are shared out (Demmel et al. 2012,
    # "Communication-optimal parallel and sequential QR and LU factorizations", section 3).
    triangles = np.concatenate(list(_pieces(W, mean, lambda rows: np.linalg.qr(rows, mode="r"))))
    _, sigma, Vt = np.linalg.svd(np.linalg.qr(triangles, mode="r"), full_matrices=False)
    return sigma, Vt


def _pieces(W, mean, of_rows: Callable) -> Iterator[np.ndarray]:
    size = max(_ROWS, 2 * W.shape[1])
    with concurrent.futures.ThreadPoolExecutor(lapack_threads()) as threads:
        starts = range(0, len(W), size)
        yield from threads.map(lambda at: of_rows(W[at : at + size].astype(np.float64) - mean), starts)
