"""What may name a directory."""

from __future__ import annotations

import os
from typing import Any


def check_directory(name: str, path: Any) -> str:
    """Return the path that was given as the argument ``name``, as text.

    Raises:
        TypeError: it is no path.
        ValueError: no directory can be called that on this system.
    """
    place = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(place, str):
        raise TypeError(f"{name} is a {type(path).__name__}; give a path")
    try:
        encoded = os.fsencode(place)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} {place!r} is no path of this system: {error}") from error
    if not encoded or b"\0" in encoded:
        raise ValueError(f"{name} {place!r} names no directory")
    return place
