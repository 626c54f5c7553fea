"""Many states, found by what they mean: the semantic memory among the agents."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from dgents.backends.vector_backend import Kind, VectorBackend
from dgents.backends.vector_cell import VectorCell
from dgents.backends.vector_ref import VectorRef
from dgents.runtime.arguments import check_path
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Resources
from dgents.runtime.migrations import Migration
from dgents.runtime.state_type import S

if TYPE_CHECKING:
    from dgents.backends.vector_input import Metric


_MAX_DIMENSION = 2**31 - 1
_METRICS = ("cosine", "ip", "l2")
_INDEXES = ("flat", "hnsw", "ivf")


@dataclass(frozen=True, eq=False)
class VectorAgent(Generic[S]):
    """Keep states with an embedding each, and search them by similarity. Needs ``dgents[vector]``.

    Args:
        dimension: how many components each embedding has.
        path: the directory that keeps them, for this actor alone; None: in memory.
        index: ``"flat"`` (exact), ``"hnsw"``, ``"ivf"`` (built beside the searches, once there are enough vectors), or
            a faiss factory string. It may be another one when a directory is opened again.
        metric: ``"cosine"``, ``"ip"`` (inner product) or ``"l2"`` (squared distance).
        schema: the type of the states; None for built-in types (in memory: any class).
        embed: ``embed(state)`` returns the embedding of a state that has none of its own; sync (it runs in a worker
            thread) or async. With a method ``batch(states)`` it is called once for each `save_many`.
        migrations: by schema version, what lifts an old state to the next one.

    Raises:
        ValueError, TypeError: an argument can't be right; nothing was opened.

    Example:
        >>> memory = await rt.spawn("memory", VectorAgent(3, path="memory"))
        >>> await memory.save({"text": "the sky is blue"}, id="sky", embedding=[0.1, 0.7, 0.2])
        1
        >>> [hit.id for hit in await memory.search([0.0, 1.0, 0.0], k=3)]
        ['sky']
    """

    dimension: int
    _: KW_ONLY
    path: str | os.PathLike[str] | None = None
    index: str = "flat"
    metric: Metric = "cosine"
    schema: type[S] | None = None
    embed: Callable[[S], Any] | None = None
    migrations: Mapping[int, Migration] | None = None

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[VectorRef[S]]: ...
    else:
        ref_type = VectorRef

    cell_type: ClassVar[type[VectorCell]] = VectorCell

    def __post_init__(self) -> None:
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int) or self.dimension < 1:
            raise ValueError(f"dimension is {self.dimension!r}; give the length of the embeddings, 1 or more")
        if self.dimension > _MAX_DIMENSION:
            raise ValueError(f"dimension is {self.dimension}; FAISS takes up to {_MAX_DIMENSION:,}")
        if not isinstance(self.index, str) or not self.index:
            raise ValueError(f"index is {self.index!r}; give 'flat', 'hnsw', 'ivf' or a factory string of faiss")
        if self.metric not in _METRICS:
            raise ValueError(f"metric is {self.metric!r}; give 'cosine', 'ip' or 'l2'")
        if self.index not in _INDEXES:
            _check_recipe(self.index, self.dimension, self.metric)
        if self.embed is not None and not callable(self.embed):
            raise TypeError(f"embed is {type(self.embed).__name__}; give a function of a state")
        if self.path is not None:
            object.__setattr__(self, "path", check_path("path", self.path))
        self.codec()

    @property
    def local(self) -> bool:
        """Whether nothing leaves this process: any class may then be kept without naming it."""
        return self.path is None

    def codec(self) -> Codec[S]:
        """Return what encodes the states: the same one for all actors of this agent."""
        made: Codec[S] | None = self.__dict__.get("_codec")
        if made is None:
            made = Codec(self.schema, migrations=self.migrations, local=self.local)
            object.__setattr__(self, "_codec", made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_codec"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def backend(self, name: str, resources: Resources) -> VectorBackend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`."""
        path = Path(os.path.abspath(self.path)) if self.path is not None else None
        return VectorBackend(name, path, Kind(self.dimension, self.index, self.metric), self.codec(), resources)


def _check_recipe(index: str, dimension: int, metric: Metric) -> None:
    """Ask faiss, if it is installed, whether it knows an index; it is loaded for that.

    Raises:
        ValueError: it doesn't, or can't make it for such vectors.
    """
    try:
        from dgents.backends.vector_ann import Recipe
    except ImportError:
        return  # said when an actor is spawned
    Recipe(index, dimension, metric)
