"""Average, forgetting and transfer of a result matrix R[T, T], each definition under its own name.

``R[t, i]`` is the primary metric on test set i after experience t (1-based in formulas and messages). Larger is better:
negate an error metric before calling. NaN means "not evaluated". Zero-shot entries (i > t) may be stored; only
:func:`forward_transfer` reads them. A definition that needs a NaN entry raises instead of leaving it out. Where a
definition is a mean over nothing (every forgetting and transfer at T = 1), it raises too: there is no value to report.

Sources: GEM (Lopez-Paz and Ranzato 2017), section 3, for R, A_T, BWT and FWT; Chaudhry et al. 2018, section 4, for FM;
``specs/README.md`` for the variants and their golden values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORGETTING = ("FM", "FM_clamped", "FM_stage", "FM_first")
BACKWARD_TRANSFER = ("BWT", "BWT_step")

FORMULAS = {
    "A_T": "mean over i ≤ T of R[T,i]",
    "mean A": "mean over t of A_t",
    "LA": "mean over i of R[i,i]",
    "FM": "mean over i < T of max{i ≤ t < T} R[t,i] − R[T,i]",
    "FM_clamped": "mean over i < T of max{t ≤ T} R[t,i] − R[T,i], missing entries 0",
    "FM_stage": "mean over k = 2…T of mean over i < k of max{i ≤ t < k} R[t,i] − R[k,i]",
    "FM_first": "mean over i < T of R[i,i] − R[T,i]",
    "BWT": "mean over i < T of R[T,i] − R[i,i]",
    "BWT_step": "mean over i < T of R[T,i] − R[T−1,i]",
    "FWT": "mean over i ≥ 2 of R[i−1,i] − reference[i]",
}
"""Definition name → formula, as reports print it."""


def _square(R: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"R has shape {matrix.shape}, expected [T, T] with T ≥ 1")
    return matrix


def _entry(R: NDArray[np.float64], t: int, i: int, definition: str) -> float:
    """Return R[t, i] (0-based arguments), or raise if it was not evaluated or is infinite."""
    value = R[t, i]
    if not np.isfinite(value):
        found = "not evaluated (NaN)" if np.isnan(value) else f"{value}"
        raise ValueError(f"{definition} needs R[{t + 1},{i + 1}], which is {found}; expected a finite value")
    return float(value)


def _several(R: NDArray[np.float64], definition: str) -> int:
    if len(R) < 2:
        raise ValueError(f"{definition} is undefined for T = 1: it needs at least two experiences")
    return len(R)


def _row_mean(R: NDArray[np.float64], t: int, definition: str) -> float:
    return float(np.mean([_entry(R, t, i, definition) for i in range(t + 1)]))


def _drop(R: NDArray[np.float64], i: int, k: int, definition: str) -> float:
    """max over i ≤ t < k of R[t,i], minus R[k,i]; 0-based."""
    return max(_entry(R, t, i, definition) for t in range(i, k)) - _entry(R, k, i, definition)


def _stage_drops(R: NDArray[np.float64], size: int, definition: str) -> NDArray[np.float64]:
    """Mean drop over the experiences before k, for k = 2…T (1-based)."""
    return np.array([float(np.mean([_drop(R, i, k, definition) for i in range(k)])) for k in range(1, size)])


def average(R: ArrayLike) -> float:
    """Return A_T, the mean of the last row (i ≤ T). R: [T, T].

    Raises:
        ValueError: an entry of the last row is NaN, or R is not square.
    """
    matrix = _square(R)
    return _row_mean(matrix, len(matrix) - 1, "A_T")


def average_curve(R: ArrayLike) -> NDArray[np.float64]:
    """Return A_1 … A_T ``[T]``, A_t being the mean of R[t,i] over i ≤ t.

    Raises:
        ValueError: an entry with i ≤ t is NaN, or R is not square.
    """
    matrix = _square(R)
    return np.array([_row_mean(matrix, t, f"A_{t + 1}") for t in range(len(matrix))])


def mean_average(R: ArrayLike) -> float:
    """Return mean A, the mean of A_1 … A_T. Raises like :func:`average_curve`."""
    return float(np.mean(average_curve(R)))


def learning_accuracy(R: ArrayLike) -> float:
    """Return LA, the mean of R[i,i]. R: [T, T].

    Raises:
        ValueError: a diagonal entry is NaN, or R is not square.
    """
    matrix = _square(R)
    return float(np.mean([_entry(matrix, i, i, "LA") for i in range(len(matrix))]))


def retention(R: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each result that is kept, R[T,i] / R[i,i] ``[T]``; the last is 1 by construction.

    NaN where R[i,i] ≤ 0: a ratio to a score that is not positive is no share.

    Raises:
        ValueError: an entry R[T,i] or R[i,i] is NaN, or R is not square.
    """
    matrix = _square(R)
    last = len(matrix) - 1
    kept = np.array([_entry(matrix, last, i, "retention") for i in range(len(matrix))])
    learnt = np.array([_entry(matrix, i, i, "retention") for i in range(len(matrix))])
    return np.divide(kept, learnt, out=np.full_like(kept, np.nan), where=learnt > 0)


def micro_average(R: ArrayLike, counts: ArrayLike) -> float:
    """Return the mean of the last row weighted by the sizes of the test sets: for a share of samples, its mean over all samples.

    Args:
        R: [T, T].
        counts: [T] samples of each test set, positive.

    Raises:
        ValueError: an entry of the last row is NaN, R is not square, or a count is missing or not positive.
    """
    matrix, sizes = _square(R), np.asarray(counts, dtype=np.float64)
    last = len(matrix) - 1
    if sizes.shape != (len(matrix),) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"micro average: counts {sizes.tolist()}, expected {len(matrix)} positive numbers of samples")
    row = [_entry(matrix, last, i, "micro average") for i in range(len(matrix))]
    return float(np.average(row, weights=sizes))


def forgetting_curve(R: ArrayLike) -> NDArray[np.float64]:
    """Return f[2] … f[T] ``[T − 1]``, f[k] being the mean over i < k of max_{i≤t<k} R[t,i] − R[k,i]; R [T, T], T ≥ 2.

    f[T] is ``FM``, the mean of all is ``FM_stage``.

    Raises:
        ValueError: T = 1, R not square, or an entry with i ≤ t is NaN.
    """
    matrix = _square(R)
    return _stage_drops(matrix, _several(matrix, "f[t]"), "f[t]")


def forgetting(R: ArrayLike, definition: str = "FM") -> float:
    """Return the forgetting of R [T, T], T ≥ 2, in the unit of the metric; positive = forgotten.

    ========== ======================================================================== ====================
    FM         mean_{i<T} [ max_{i≤t<T} R[t,i] − R[T,i] ]; may be negative                Chaudhry 2018, our headline
    FM_clamped mean_{i<T} [ max_{t≤T} R[t,i] − R[T,i] ], missing and zero-shot entries 0  mammoth; never negative
    FM_stage   mean_{k=2…T} mean_{i<k} [ max_{i≤t<k} R[t,i] − R[k,i] ]                    AVQACL-MoE "AF"
    FM_first   mean_{i<T} [ R[i,i] − R[T,i] ]                                             Avalanche
    ========== ======================================================================== ====================

    Raises:
        ValueError: unknown definition, T = 1, R not square, or a needed entry is NaN (for ``FM_clamped`` only the last
            row is needed, because that definition counts a missing entry as 0).
    """
    if definition not in FORGETTING:
        raise ValueError(f"unknown definition of forgetting {definition!r}; known: {', '.join(FORGETTING)}")
    matrix = _square(R)
    last = _several(matrix, definition) - 1
    if definition == "FM_clamped":
        # Zero padding is part of that definition: what a run did not evaluate yet stands as 0 in its matrix.
        padded = np.nan_to_num(np.tril(matrix), nan=0.0)
        drops = [float(np.max(padded[:, i])) - _entry(matrix, last, i, definition) for i in range(last)]
    elif definition == "FM_stage":
        drops = _stage_drops(matrix, last + 1, definition)
    elif definition == "FM_first":
        drops = [_entry(matrix, i, i, definition) - _entry(matrix, last, i, definition) for i in range(last)]
    else:
        drops = [_drop(matrix, i, last, definition) for i in range(last)]
    return float(np.mean(drops))


def backward_transfer(R: ArrayLike, definition: str = "BWT") -> float:
    """Return the backward transfer of R [T, T], T ≥ 2, in the unit of the metric; negative = forgotten.

    ======== ======================================== ===============
    BWT      mean_{i<T} [ R[T,i] − R[i,i] ]             GEM 2017, eq. 3
    BWT_step mean_{i<T} [ R[T,i] − R[T−1,i] ]           PAH "BWT"
    ======== ======================================== ===============

    Raises:
        ValueError: unknown definition, T = 1, R not square, or a needed entry is NaN.
    """
    if definition not in BACKWARD_TRANSFER:
        raise ValueError(
            f"unknown definition of backward transfer {definition!r}; known: {', '.join(BACKWARD_TRANSFER)}"
        )
    matrix = _square(R)
    last = _several(matrix, definition) - 1
    before = [(i if definition == "BWT" else last - 1, i) for i in range(last)]
    gains = [_entry(matrix, last, i, definition) - _entry(matrix, t, i, definition) for t, i in before]
    return float(np.mean(gains))


def forward_transfer(R: ArrayLike, reference: ArrayLike) -> float:
    """Return FWT = mean_{i≥2} ( R[i−1,i] − reference[i] ), GEM 2017, eq. 4, in the unit of the metric.

    Args:
        R: [T, T], T ≥ 2, with the zero-shot entries just above the diagonal.
        reference: [T], the result on each test set without the stream (an untrained model, say). Its first element
            belongs to experience 1, which nothing precedes, and is not read.

    Raises:
        ValueError: T = 1, a shape is wrong, or a needed entry of R or of the reference is NaN.
    """
    matrix = _square(R)
    size = _several(matrix, "FWT")
    start = np.asarray(reference, dtype=np.float64)
    if start.shape != (size,):
        raise ValueError(f"FWT: reference has shape {start.shape}, expected [{size}], one value per experience")
    for i in range(1, size):
        if not np.isfinite(start[i]):
            raise ValueError(f"FWT needs reference[{i + 1}], which is {start[i]}; expected a finite value")
    return float(np.mean([_entry(matrix, i - 1, i, "FWT") - float(start[i]) for i in range(1, size)]))
