"""Rounded operands of the filter's products, and proven bounds on the error of its scores.

A filter computes ŝ = fl(⟨â, b̂⟩), where â and b̂ hold the elements of a and b rounded to a lower
precision and the terms of the score in columns of their own. By the Cauchy–Schwarz inequality

    |ŝ − s| ≤ ‖a − â‖·‖b‖ + ‖â‖·‖b − b̂‖ + γ·(‖â‖·‖b̂‖ + |terms|) + u·|s|

with γ for sums in any order and u for the rounding of the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypq.kernels import memory

EPS = 2.0**-23  # twice the unit roundoff of float32: room for the bound's own rounding
TINY = 2.0**-126  # smallest normal float32: bound on the error of underflow
HUGE = 2.0**126  # products whose sum of magnitudes is below it cannot overflow
_ALIGNED = 8  # columns of an operand on a GPU, whose fast products need rows of 16 bytes


@dataclass(frozen=True)
class Precision:
    """The precision of a filter.

    Attributes:
        rounding: unit roundoff u of results. product: error of a sum of products, for each of its
            terms. pieces: numbers that hold a float64 term to 2⁻²³.
        spare: candidates beyond k in the first attempt at a row's top k, for each of k; at least
            ``least_spare``.
    """

    dtype: torch.dtype
    rounding: float
    product: float
    pieces: int
    spare: float
    least_spare: int


FLOAT32 = Precision(torch.float32, 0.0, EPS, 1, 0.0, 8)
# Tensor cores truncate what they add, so four times the error of float32 is allowed.
BFLOAT16 = Precision(torch.bfloat16, 2.0**-8, 4 * EPS, 3, 1.0, 22)


@dataclass(frozen=True)
class Operand:
    """One side of a filter's product.

    Attributes:
        values: â [n, D′], with terms and padding.
        length: ‖â‖ [n]. error: ‖a − â‖ [n]. terms: sum of the terms' magnitudes [n]; float64.
    """

    values: Tensor
    length: Tensor
    error: Tensor
    terms: Tensor

    @classmethod
    def of(cls, x: Tensor, terms: list[Tensor | None], precision: Precision) -> Operand:
        """The operand of vectors x [n, D], float32.

        Args:
            terms: float64 [n] each, or None for a 1 that meets a term of the other side.
        """
        n, D = x.shape
        extra = precision.pieces * len(terms)
        padding = -(D + extra) % _ALIGNED if x.device.type == "cuda" else 0
        exact = precision.dtype == torch.float32
        magnitudes = x.new_zeros(n, dtype=torch.float64)
        for term in terms:
            if term is not None:
                magnitudes = magnitudes + term.abs()
        length, error = torch.empty_like(magnitudes), torch.zeros_like(magnitudes)
        apart = not exact or extra + padding
        values = x
        if apart:
            values = x.new_zeros((n, D + extra + padding), dtype=precision.dtype)
        # Norms in float64 take several times the memory of the rows.
        for rows in memory.parts(n, 24 * D, str(x.device)):
            if apart:
                values[rows, :D] = x[rows]
            rounded = values[rows, :D]
            length[rows] = torch.linalg.vector_norm(rounded, dim=1, dtype=torch.float64)
            if not exact:
                error[rows] = _distance(x[rows], rounded)
        for number, term in enumerate(terms):
            first = D + number * precision.pieces
            _write_term(values[:, first : first + precision.pieces], term)
        return cls(values, length, error, magnitudes)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: slice | Tensor) -> Operand:
        """Some of the rows."""
        return Operand(self.values[rows], self.length[rows], self.error[rows], self.terms[rows])


def product(a: Operand, b: Operand) -> Tensor:
    """Rough scores ŝ [n, m], in the precision of the operands."""
    with torch.autocast(a.values.device.type, enabled=False):
        return _product(a, b)


def _product(a: Operand, b: Operand) -> Tensor:
    if a.values.dtype == torch.bfloat16 and a.values.device.type == "cpu":
        # The sums of a CPU's own product may be in bfloat16.
        return (a.values.float() @ b.values.float().T).bfloat16()
    return a.values @ b.values.T


def error_of(a: Operand, b: Operand, D: int, precision: Precision) -> Tensor:
    """A bound [n] on |ŝ − s| of each row of a with all rows of b, without the rounding of results;
    infinite where products may overflow."""
    length, error, terms = (each.max() for each in (b.length, b.error, b.terms))
    return _bound(a.length, a.error, a.terms, length, error, terms, D, precision)


def errors_of(a: Operand, b: Operand, D: int, precision: Precision) -> Tensor:
    """As ``error_of``, for each pair [n, m]."""
    length, error, terms = (each[:, None] for each in (a.length, a.error, a.terms))
    return _bound(length, error, terms, b.length, b.error, b.terms, D, precision)


def _bound(
    a_length: Tensor,
    a_error: Tensor,
    a_terms: Tensor,
    b_length: Tensor,
    b_error: Tensor,
    b_terms: Tensor,
    D: int,
    precision: Precision,
) -> Tensor:
    sizes = a_length * b_length + a_terms + b_terms
    bound = (
        a_error * (b_length + b_error)
        + a_length * b_error
        + (D + 16) * precision.product * sizes
        + (D + 16) * TINY * (1 + a_length + b_length)
    )
    return torch.where(sizes < HUGE, bound, torch.inf)


def floor_of(kth: Tensor, error: Tensor, precision: Precision) -> Tensor:
    """The least rough score [n] of what may be among the k best, by the k-th best rough score.

    The k best rough scores belong to scores of at least kth − u|kth| − e, and a score of at least
    that has a rough one of at least kth − u|kth| − 2e, rounded.
    """
    u = precision.rounding
    wide = kth.double()
    return _rounded(wide - (2 + 3 * u) * error - 2.02 * u * wide.abs(), precision)


def floor_from(score: Tensor | float, error: Tensor, precision: Precision) -> Tensor:
    """The least rough score [n] of scores that reach ``score``."""
    least = torch.as_tensor(score, dtype=torch.float64, device=error.device)
    u = precision.rounding
    return _rounded(least - (1 + 1.01 * u) * error - 1.01 * u * least.abs(), precision)


def _rounded(floor: Tensor, precision: Precision) -> Tensor:
    """The floor in the precision of rough scores. No such score lies between the two, so that no
    more are below it."""
    return floor.to(precision.dtype)


def _write_term(columns: Tensor, term: Tensor | None) -> None:
    """Writes a term as pieces in the precision of its columns; None: ones."""
    if term is None:
        columns.fill_(1)
        return
    rest = term
    for piece in columns.unbind(1):
        piece.copy_(rest)
        rest = rest - piece.double()


def _distance(x: Tensor, rounded: Tensor) -> Tensor:
    """‖x − x̂‖ [n]; the differences are exact in float32."""
    return torch.linalg.vector_norm(x - rounded.float(), dim=1, dtype=torch.float64)
