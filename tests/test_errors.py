"""Every error: it pickles, prints itself once, with its hint, and belongs to the tree."""

from __future__ import annotations

import copy
import pickle

import pytest

import dgents
from dgents.runtime import errors

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.DgentError)]

EXTRA = {
    "StateSerializationError": {"path": "$.x"},
    "InvalidVectorError": {"position": 2, "id": "x"},
    "StateCorruptionError": {"path": "file", "offset": 7},
    "StateTooLargeError": {"size": 9, "limit": 8},
    "StorageError": {"retryable": False},
    "StateLockedError": {"pid": 1, "host": "h"},
    "MailboxFullError": {"refused": "message"},
    "DeadlockError": {"chain": ("a", "b")},
}


def make(cls: type[errors.DgentError]) -> errors.DgentError:
    fields = {"actor": "a", "key": "k", "outcome": "unknown", "hint": "do this", **EXTRA.get(cls.__name__, {})}
    if issubclass(cls, errors.VersionConflictError):
        return cls(1, 2, message="it went wrong", **fields)
    return cls("it went wrong", **fields)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_pickles_with_all_its_fields(cls: type[errors.DgentError]) -> None:
    error = make(cls)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert (vars(twin), str(twin), twin.args) == (vars(error), str(error), error.args)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_prints_what_happened_once_and_what_to_do(cls: type[errors.DgentError]) -> None:
    assert str(make(cls)) == "it went wrong; do this"


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_is_public_and_says_what_it_means(cls: type[errors.DgentError]) -> None:
    assert getattr(dgents, cls.__name__) is cls
    assert cls.__doc__
    assert make(cls).outcome == "unknown"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.StateNotFoundError, LookupError),
        (errors.StateSerializationError, TypeError),
        (errors.StateCorruptionError, ValueError),
        (errors.StateTooLargeError, ValueError),
        (errors.UnsupportedOperationError, NotImplementedError),
        (errors.StorageError, OSError),
        (errors.LeaseExpiredError, TimeoutError),
        (errors.NameTakenError, ValueError),
        (errors.AskTimeoutError, TimeoutError),
        (errors.StaleStateError, errors.VersionConflictError),
        (errors.OwnershipLostError, errors.StorageError),
        (errors.StateLockedError, errors.StorageError),
    ],
)
def test_an_error_can_be_caught_as_the_builtin_that_is_nearest(cls: type, builtin: type) -> None:
    assert issubclass(cls, builtin)


def test_a_conflict_says_which_versions_of_whom() -> None:
    error = errors.VersionConflictError(3, 5, actor="user/1")
    assert "user/1" in str(error)
    assert (error.expected, error.actual, error.outcome) == (3, 5, "rolled_back")
