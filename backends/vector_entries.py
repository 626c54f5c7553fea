"""What is saved in a vector store, checked: ids, encoded states, and their vectors. It needs numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from dgents.backends.vector_input import Id, Metric, Vectors, check_ids, check_vectors
from dgents.backends.vector_states import LARGEST_ID, following
from dgents.runtime.codec import Codec
from dgents.runtime.errors import InvalidVectorError, StateError


class Entries(NamedTuple):
    """What one save brings. An id that is None is given by the store.

    Attributes:
        following: a generated id that comes after all ids that are given.
        size: bytes of all states and vectors.
    """

    ids: list[Id | None]
    states: list[bytes]
    vectors: Vectors
    following: int
    size: int


def check_id(id: Any) -> Id:
    """Return an id as plain ``str`` or ``int``.

    Raises:
        InvalidVectorError: it is neither, or an int beyond 64 bits, or a text that can't be stored.
    """
    (plain,) = check_ids([id])
    if isinstance(plain, int) and not -LARGEST_ID - 1 <= plain <= LARGEST_ID:
        raise InvalidVectorError(f"id {plain} does not fit into 64 bits", position=0)
    if isinstance(plain, str) and not plain.isascii():
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise InvalidVectorError(f"id {plain!r} holds a lone surrogate", position=0) from error
    return plain


def make_entries(
    states: Sequence[Any],
    ids: Sequence[Id | None] | None,
    embeddings: Any,
    *,
    dimension: int,
    metric: Metric,
    codec: Codec[Any],
) -> Entries:
    """Check and encode what is to be saved.

    Raises:
        InvalidVectorError: an id or a vector can't be kept; it names it.
        StateSerializationError: a state can't be stored; it names its position if there are several.
        ValueError: there are not as many ids or embeddings as states.
        TypeError: the embeddings are neither a matrix nor a list.
    """
    plain = _ids(ids, len(states))
    if not hasattr(embeddings, "__len__"):
        raise TypeError(f"embeddings is a {type(embeddings).__name__}; give a matrix, or a list of vectors")
    if len(embeddings) != len(states):
        raise ValueError(f"{len(embeddings)} embeddings for {len(states)} states: each state needs one")
    names = None if ids is None else Names(plain)
    vectors = check_vectors(as_matrix(embeddings, dimension, names), dimension, metric, names)
    encoded: list[bytes] = []
    try:
        for state in states:
            encoded.append(codec.encode(state))
    except StateError as error:
        if len(states) > 1:
            error.message = f"state number {len(encoded)}: {error.message}"
        raise
    return Entries(plain, encoded, vectors, following(plain), sum(map(len, encoded)) + vectors.values.nbytes)


class Names(Sequence[Any]):
    """What the vectors are called in errors: their ids, and where there is none yet, their number."""

    def __init__(self, ids: Sequence[Id | None]) -> None:
        self._ids = ids

    def __getitem__(self, position: Any) -> Any:
        id = self._ids[position]
        return f"number {position}" if id is None else id

    def __len__(self) -> int:
        return len(self._ids)


def _ids(ids: Sequence[Id | None] | None, count: int) -> list[Id | None]:
    if ids is None:
        return [None] * count
    if isinstance(ids, str | bytes) or not hasattr(ids, "__len__"):
        raise InvalidVectorError(f"ids must be a sequence of ids, not {ids!r} itself")
    if set(map(type, ids)) == {int} and len(ids) == count:
        numbers = cast(Sequence[int], ids)
        if min(numbers) >= -LARGEST_ID and max(numbers) <= LARGEST_ID:
            return list(ids)  # the usual ones, quickly
    plain: list[Id | None] = []
    for position, id in enumerate(ids):
        try:
            plain.append(None if id is None else check_id(id))
        except InvalidVectorError as error:
            error.position = position
            error.message = error.message.replace("id number 0", f"id number {position}")
            raise
    if len(plain) != count:
        raise ValueError(f"{len(plain)} ids for {count} states: each state needs one, or None")
    return plain


def as_matrix(vectors: Any, dimension: int, names: Names | None = None) -> Any:
    """Return vectors as a matrix of their own, one a row.

    Raises:
        InvalidVectorError: one has another dimension; it names it.
    """
    try:
        matrix = np.array(vectors)
    except ValueError:
        matrix = None
    if matrix is not None and matrix.shape == (len(vectors), dimension):
        return matrix
    for position, vector in enumerate(vectors):
        try:
            shape = np.shape(vector)
        except ValueError:
            shape = ()
        if shape != (dimension,):
            name = "the vector" if names is None else f"the vector of id {names[position]!r}"
            what = f"dimension {shape[0]}" if len(shape) == 1 else f"shape {shape}"
            raise InvalidVectorError(
                f"{name} (number {position}) has {what}, expected dimension {dimension}",
                position=position,
                hint="embed it with the model that the VectorAgent was made for",
            )
    return np.empty((0, dimension), np.float32) if matrix is None or not len(vectors) else matrix
