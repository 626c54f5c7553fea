"""What may enter a vector index: ids, vectors to keep, vectors to search with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dgents.runtime.errors import InvalidVectorError

Id: TypeAlias = str | int
Metric: TypeAlias = Literal["cosine", "ip", "l2"]
Floats: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.int64]

METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

# Between these squared lengths float32 neither underflows nor overflows, whatever is done with the vector
# next.
_SMALLEST, _LARGEST = 1e-30, 1e30


class Vectors(NamedTuple):
    """Checked vectors, and their squared lengths.

    ``scale`` is what each has to be multiplied with to be kept; None: they're kept as they are.
    """

    values: Floats
    scale: Floats | None
    squares: Floats

    def scaled(self) -> Floats:
        """Return the vectors as the index keeps them: for the cosine metric, of length 1."""
        return self.values if self.scale is None else self.values * self.scale[:, None]


def check_ids(ids: Sequence[Id]) -> list[Id]:
    """Return the ids as plain ``str`` and ``int``; numpy's integers become ``int``.

    Raises:
        InvalidVectorError: one is neither; a ``bool`` is no id, as ``True`` and 1 would be the same one.
    """
    if isinstance(ids, str | bytes):
        raise InvalidVectorError(f"ids must be a sequence of ids, not {ids!r} itself")
    plain = list(ids)
    if set(map(type, plain)) <= {str, int}:
        return plain
    for position, id in enumerate(plain):
        if isinstance(id, bool) or not isinstance(id, str | int | np.integer):
            text = f"id number {position} is {id!r}, a {type(id).__name__}: an id is a str or an int"
            raise InvalidVectorError(text, position=position)
        plain[position] = str(id) if isinstance(id, str) else int(id)
    return plain


def check_vectors(vectors: Any, dimension: int, metric: Metric, ids: Sequence[Id] | None = None) -> Vectors:
    """Return the rows of the matrix ``vectors`` as float32, with what is needed to keep them.

    Args:
        vectors: anything that numpy makes a matrix of real numbers of, one vector a row.
        ids: what the vectors are called, for the message.

    Raises:
        InvalidVectorError: no matrix of ``dimension`` columns, or a vector with NaN, infinite or too large
            components, or, for the cosine metric, without a direction (all zero).
    """
    values = _as_matrix(vectors, dimension)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # One pass tells all: a NaN or an infinite component makes the squared length not finite.
        squares = np.einsum("ij,ij->i", values, values)
        usual = (squares > _SMALLEST) & (squares < _LARGEST)
        if not usual.all():
            values, squares = _check_unusual(values, squares, np.flatnonzero(~usual), metric, ids)
        scale = (1.0 / np.sqrt(squares)) if metric == "cosine" else None
    return Vectors(values, scale, squares)


def _as_matrix(vectors: Any, dimension: int) -> Floats:
    try:
        matrix = np.asarray(vectors)
    except ValueError as error:
        raise InvalidVectorError(f"the vectors are no matrix with {dimension} columns: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != dimension:
        if not matrix.size and matrix.ndim < 3:
            return np.empty((0, dimension), np.float32)
        text = f"expected vectors of dimension {dimension}, one a row; found an array of shape {matrix.shape}"
        raise InvalidVectorError(text, hint=f"pass shape (count, {dimension}), as VectorAgent was told")
    if matrix.dtype.kind not in "fiu":
        raise InvalidVectorError(f"expected real numbers, found an array of {matrix.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(matrix, np.float32)


def _check_unusual(
    values: Floats, squares: Floats, rows: npt.NDArray[np.intp], metric: Metric, ids: Sequence[Id] | None
) -> tuple[Floats, Floats]:
    """Refuse those of ``rows`` that can't be kept; for cosine, bring the others to length 1 exactly."""
    for row in rows.tolist():
        vector = values[row]
        if not np.isfinite(vector).all():
            column = int(np.flatnonzero(~np.isfinite(vector))[0])
            _refuse(f"has {vector[column]} at component {column}", row, ids)
        if metric == "cosine" and not vector.any():
            _refuse("is all zeros and has no direction, so no cosine with anything", row, ids)
        if metric != "cosine" and squares[row] >= _LARGEST:
            _refuse(f"is so long (over 1e15) that {metric} scores overflow float32", row, ids)
    if metric == "cosine":
        exact = values[rows].astype(np.float64)
        values, squares = values.copy(), squares.copy()
        values[rows] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        squares[rows] = 1.0
    return values, squares


def _refuse(why: str, position: int, ids: Sequence[Id] | None) -> None:
    id = ids[position] if ids is not None else None
    name = f"the vector of id {id!r} (number {position})" if ids is not None else f"vector number {position}"
    raise InvalidVectorError(f"{name} {why}", position=position, id=id)
