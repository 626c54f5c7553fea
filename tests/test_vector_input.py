"""What the vector engine refuses, and how it says so."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest

from dgents.backends.vector_backend import vector_engine
from dgents.backends.vector_index import VectorIndex
from dgents.runtime.errors import InvalidVectorError, StateSerializationError
from tests.vector_kit import filled, vectors


def test_ids_of_numpy_come_back_as_plain_numbers() -> None:
    index = VectorIndex(2)
    index.upsert(list(np.arange(3)), np.eye(3, 2) + 1)
    assert {type(id) for id in index} == {int}


def test_very_short_and_very_long_vectors_have_a_cosine() -> None:
    index = VectorIndex(2)
    index.upsert(["short", "long"], np.array([[1e-40, 0], [0, 1e38]], np.float32))
    assert index.search(np.array([[1e-42, 0]], np.float32), 1) == [[("short", pytest.approx(1.0))]]
    assert index.search([[0, 1e30]], 1) == [[("long", pytest.approx(1.0))]]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([[1.0, float("nan")]], "'b' .*nan at component 1"),
        ([[float("inf"), 0.0]], "'b' .*inf at component 0"),
        ([[1e300, 0.0]], "'b' .*inf at component 0"),
        ([[0.0, 0.0]], "'b' .*all zeros"),
    ],
)
def test_a_vector_that_cannot_be_kept_is_named_and_nothing_changes(bad: Any, words: str) -> None:
    index = VectorIndex(2)
    index.upsert(["a"], [[1.0, 0.0]])
    with pytest.raises(InvalidVectorError, match=words) as caught:
        index.upsert(["a", "b"], [[0.0, 1.0], *bad])
    assert (caught.value.position, caught.value.id) == (1, "b")
    assert isinstance(caught.value, StateSerializationError | ValueError)
    assert index.search([[1.0, 0.0]], 5) == [[("a", 1.0)]]


@pytest.mark.parametrize(
    "bad", [[[1.0, 2.0, 3.0]], [1.0, 2.0], [[1.0], [1.0, 2.0]], [["1", "2"]], [[1j, 0]], [[None, 1.0]]]
)
def test_what_is_no_matrix_of_the_dimension_is_refused(bad: Any) -> None:
    index = VectorIndex(2)
    with pytest.raises(InvalidVectorError):
        index.upsert(["a"], bad)
    with pytest.raises(InvalidVectorError):
        index.search(bad, 1)


def test_a_wrong_dimension_is_told_with_both_numbers() -> None:
    with pytest.raises(InvalidVectorError, match=r"dimension 2, .*\(1, 3\)"):
        VectorIndex(2).upsert(["a"], [[1, 2, 3]])


@pytest.mark.parametrize("bad", [True, 1.0, None, b"a", ("a",)])
def test_an_id_is_text_or_a_number(bad: Any) -> None:
    with pytest.raises(InvalidVectorError, match="id number 1"):
        VectorIndex(2).upsert(["a", bad], np.ones((2, 2)))


def test_ids_and_vectors_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 ids for 1 vectors"):
        VectorIndex(2).upsert(["a", "b"], [[1, 2]])


def test_an_invalid_vector_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(InvalidVectorError("vector number 3 has nan", position=3, id="x")))
    assert (str(error), error.position, error.id, error.path) == ("vector number 3 has nan", 3, "x", "$[3]")


@pytest.mark.parametrize(
    "arguments",
    [
        {"dimension": 0},
        {"dimension": True},
        {"dimension": 2, "metric": "hamming"},
        {"dimension": 2, "index": "nonsense"},
        {"dimension": 2, "index": "IDMap,Flat"},
    ],
)
def test_a_description_that_makes_no_index_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dimension=|metric=|index="):
        VectorIndex(**arguments)


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_k_is_a_number_of_1_or_more(k: Any) -> None:
    with pytest.raises(ValueError, match="k="):
        filled(count=10).search(vectors(1), k)


def test_without_its_packages_the_engine_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vector_engine() is VectorIndex
    monkeypatch.delitem(sys.modules, "dgents.backends.vector_index")
    monkeypatch.delitem(sys.modules, "dgents.backends.vector_ann")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'dgents\[vector\]'"):
        vector_engine()
