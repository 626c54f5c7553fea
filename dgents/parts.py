"""What a folder holds beside the files of its states: streams, vector stores, databases, further folders of states."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dgents.backends.file import REMINDERS
from dgents.backends.file_inspect import state_files
from dgents.backends.stream_inspect import is_stream
from dgents.backends.vector_inspect import is_vectors
from dgents.places import Place, is_database
from dgents.stores import counted


class Part(NamedTuple):
    """A place of its own in a folder, and what it is in words."""

    place: Place
    what: str


def parts_of(place: Place) -> list[Part]:
    """Return what is to be looked into by itself; nothing for what is no folder."""
    if place.kind != "folder" or not os.path.isdir(place.uri):
        return []
    folder = Path(place.uri)
    paths = [path for path in sorted(folder.iterdir()) if path.name != REMINDERS and not path.is_symlink()]
    folders = [path for path in paths if path.is_dir()]
    found = []
    if streams := sum(map(is_stream, folders)):
        found.append(Part(Place("streams", place.uri, place.safe), counted(streams, "stream")))
    for path in folders:
        if not is_stream(path):
            found += _parts_in(path)
    databases = [path for path in paths if path.is_file() and is_database(path)]
    return found + [Part(Place("sqlite", str(path), str(path)), f"the database {path.name}") for path in databases]


def _parts_in(path: Path) -> list[Part]:
    """Return what a folder in the folder is, as far as it is anything of ours."""
    if is_vectors(path):
        return [Part(Place("vectors", str(path), str(path)), "1 vector store")]
    if streams := sum(is_stream(inner) for inner in path.iterdir() if inner.is_dir()):
        return [Part(Place("streams", str(path), str(path)), counted(streams, "stream"))]
    if states := len(state_files(path)):
        return [Part(Place("folder", os.path.join(path, ""), str(path)), f"{counted(states, 'state')} in {path.name}/")]
    return []
