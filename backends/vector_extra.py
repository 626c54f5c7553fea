"""The vector engine is an extra: it is imported on first use, and names what to install where that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgents.backends.vector_index import VectorIndex


def vector_engine() -> type[VectorIndex]:
    """Return `VectorIndex`.

    Raises:
        ImportError: numpy or faiss is not installed.
    """
    try:
        from dgents.backends.vector_index import VectorIndex
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "faiss"):
            raise
        raise ImportError(
            f"VectorAgent needs {error.name}, which is not installed: pip install 'dgents[vector]'",
            name=error.name,
        ) from error
    return VectorIndex
