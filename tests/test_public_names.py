"""What is public is pinned, has one home, and the packages import one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dgents

ROOT = Path(dgents.__file__).parent

# Each package, and what it may import of the others.
LAYERS = {
    "runtime": {"runtime"},
    "backends": {"backends", "runtime"},
    "supervisors": {"supervisors", "backends", "runtime"},
}
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*.py"))]

PUBLIC = """
    ActorError ActorStats ActorStoppedError Append AskTimeoutError Backoff CachedAgent DataAgent DeadlockError Delete
    DgentError EntropyConstrainedAgent Event Flush History Hit InvalidVectorError LeaseExpiredError Lens Load
    MailboxFullError Message NameTakenError OwnershipLostError Patch PersistentAgent RedisAgent RedisRef Ref Runtime
    SQLAgent SQLRef Save Search Snapshot StaleStateError StateCorruptionError StateError StateLockedError
    StateNotFoundError
    StateSerializationError StateTooLargeError StorageError StreamAgent StreamRef Supervisor Symbiont
    Transaction UnsupportedOperationError Update VectorAgent VectorRef VersionConflictError VolatileAgent
    open_sync remindable
"""


def test_the_public_names_are_these() -> None:
    assert sorted(dgents.__all__) == sorted(PUBLIC.split())


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in dgents.__all__:
        assert getattr(dgents, name).__doc__, name


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (ROOT.parent / "docs" / "api.md").read_text()
    assert not [name for name in dgents.__all__ if not re.search(rf"\b{name}\b", page)]


def test_every_method_of_a_ref_is_on_the_page_of_the_api() -> None:
    page = (ROOT.parent / "docs" / "api.md").read_text()
    for cls in (dgents.Ref, dgents.Lens, dgents.SQLRef, dgents.StreamRef, dgents.VectorRef, dgents.RedisRef):
        public = [name for name, value in vars(cls).items() if name[0] != "_" and callable(value)]
        assert not [name for name in public if not re.search(rf"\b{name}\b", page)], cls


def imported(path: Path) -> set[str]:
    """Return the packages of dgents that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("dgents.")} | {
        "dgents" for name in names if name == "dgents"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_imports_only_what_is_below_it(path: Path) -> None:
    assert imported(path) <= LAYERS[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_is_imported_under_the_name_that_it_has_in_the_repository(path: Path) -> None:
    """``import runtime`` would work in a checkout, and not in a wheel."""
    modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in modules if module and module.split(".")[0] in LAYERS}
