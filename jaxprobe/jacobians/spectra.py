"""What follows from the singular values of a Jacobian alone. numpy in float64, one Jacobian at a time."""

import math

from jaxprobe.array_typing import Float, np


def rms_gain(singular_values: Float[np.ndarray, " m"], num_inputs: int) -> float:
    """Root mean square of ||Jv|| / ||v|| over Gaussian v in R^n: ||J||_F / sqrt(n).

    Args:
      singular_values: of J, in any order.
      num_inputs: n, the number of columns of J.
    """
    return float(np.linalg.norm(singular_values.astype(np.float64)) / math.sqrt(num_inputs))


def expected_gain(singular_values: Float[np.ndarray, " m"], num_inputs: int) -> float:
    """Mean of ||Jv|| / ||v|| over Gaussian v in R^n, exactly: E||Jv|| / E||v||.

    The length and the direction of v are independent, so the mean of the ratio is the ratio of the means.
    With E sqrt(X) = 1/(2 sqrt(pi)) integral_0^inf (1 - E exp(-tX)) t^(-3/2) dt and X = sum_i sigma_i^2 g_i^2,

        E||Jv|| = 1/(2 sqrt(pi)) integral_0^inf (1 - prod_i (1 + 2 t sigma_i^2)^(-1/2)) t^(-3/2) dt.

    With t = exp(u) the integrand decays like exp(-|u|/2) on both sides and is analytic in a strip of half
    width pi, so the trapezoidal rule with step h errs by about exp(-2 pi^2 / h): none, at h = 1/4.

    Args:
      singular_values: of J, in any order.
      num_inputs: n, the number of columns of J.
    """
    sigma = singular_values.astype(np.float64)
    total = float(np.linalg.norm(sigma))
    if total == 0:
        return 0.0
    weights = np.square(sigma / total)
    step = 0.25
    u = np.arange(-80.0, 80.0 + step, step)
    t = np.exp(u)
    # To rounding, the product is exp(-t) where t is as small as that, and nothing once it is below exp(-40).
    small = t < 2.0**-53
    log_product = np.where(small, -t, -np.inf)
    for part in np.array_split(np.flatnonzero(~small), 16):
        log_product[part] = -0.5 * np.log1p(2 * t[part, None] * weights).sum(axis=1)
        if log_product[part[-1]] < -40:
            break
    integral = step * np.sum(-np.expm1(log_product) * np.exp(-u / 2))
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((num_inputs + 1) / 2) - math.lgamma(num_inputs / 2))
    return total * integral / (2 * math.sqrt(math.pi)) / mean_norm


def stable_rank(singular_values: Float[np.ndarray, " m"]) -> float:
    """||J||_F^2 / sigma_1^2, between 1 and the rank; nan for a zero matrix."""
    sigma = singular_values.astype(np.float64)
    largest = sigma.max()
    return float(np.sum(np.square(sigma / largest))) if largest > 0 else math.nan


def spectral_effective_rank(singular_values: Float[np.ndarray, " m"]) -> float:
    """Exponential of the entropy of sigma / sum sigma, between 1 and the rank; nan for a zero matrix.

    Roy and Vetterli, "The effective rank" (2007), definition 1. No offset enters, unlike in the original
    study's effective rank of hidden states.
    """
    sigma = singular_values.astype(np.float64)
    largest = sigma.max()
    if not largest > 0:
        return math.nan
    share = sigma / largest
    share = share[share > 0] / share.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def position_participation(position_norms: Float[np.ndarray, " t"]) -> float:
    """How many positions carry the Jacobian: (sum n_t^2)^2 / sum n_t^4, with n_t the norm of token t's block.

    The participation ratio of the shares n_t^2 of ||J||_F^2: 1 where one token carries all of it, T where all
    T carry the same. Padding, whose norm is zero, does not count. nan for a zero matrix.
    """
    norms = position_norms.astype(np.float64)
    largest = norms.max()
    if not largest > 0:
        return math.nan
    squares = np.square(norms / largest)
    return float(squares.sum() ** 2 / np.square(squares).sum())
