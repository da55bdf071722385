# mypy: disable-error-code="no-untyped-def,no-any-return"
"""Recursive least squares in integers: covariances with exponential forgetting, solved by L D L^T.

Fixed point throughout, 64 bits: covariances are scaled to at most 2^37 before they are factored, L has 24 bits after
the point, weights 20. By Cauchy and Schwarz |sum L_ik L_jk d_k| <= sqrt(R_ii R_jj), so no product of the factors
exceeds 2^62. The weights may overflow where targets are far above the regressors; they wrap, and the format needs that
(FORMAT.md, 9.3). The diagonal is raised by 2^-19 of its largest element, which bounds the condition.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit

HEAD = 37  # bits of the largest covariance while solving
POINT_L = 24
POINT_W = 20
CLAMP = 1 << 24  # of a weight: +-16


@njit(cache=True, nogil=True)
def observe(r, b, n, x, y, forget):
    """Enter n regressors `x` and their target `y` into covariances r (most, most) and b (most,).

    The old ones lose 2^-forget of their weight.
    """
    for i in range(n):
        xi = x[i]
        row = r[i]
        for j in range(n):
            row[j] += (xi * x[j] << 6) - (row[j] >> forget)
        b[i] += (xi * y << 6) - (b[i] >> forget)


@njit(cache=True, nogil=True)
def _scale(r, n):
    """Return (left, right): the shifts that bring the largest diagonal element to 37 bits."""
    most = np.int64(1)
    for i in range(n):
        most = max(most, r[i, i])
    left, right = 0, 0
    while most >> right >= 1 << HEAD:
        right += 1
    while most << left < 1 << (HEAD - 1):
        left += 1
    return left, right, (most << left >> right >> 19) + 16


@njit(cache=True, nogil=True)
def solve(r, b, w, n, lower, d, z):
    """Set weights w (20 bits after the point) to the solution of r w = b.

    lower (most, most), d and z (most,) are scratch.
    """
    left, right, ridge = _scale(r, n)
    for j in range(n):
        for k in range(j):
            z[k] = lower[j, k] * d[k] >> POINT_L
        for i in range(j, n):
            a = np.int64(0)
            for k in range(j):
                a += lower[i, k] * z[k]
            v = (r[i, j] << left >> right) - (a >> POINT_L)
            if i == j:
                d[j] = max(v + ridge, ridge)
            else:
                lower[i, j] = (v << POINT_L) // d[j]
    for i in range(n):
        a = np.int64(0)
        for k in range(i):
            a += lower[i, k] * z[k]
        z[i] = (b[i] << left >> right) - (a >> POINT_L)
    for i in range(n - 1, -1, -1):
        a = np.int64(0)
        for k in range(i + 1, n):
            a += lower[k, i] * w[k]
        w[i] = min(max((z[i] << POINT_W) // d[i] - (a >> POINT_L), -CLAMP), CLAMP)
