"""The ref of an actor in a SQL database: it can also be queried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dgents.runtime.arguments import check_text
from dgents.runtime.ref import Ref

S = TypeVar("S")


class SQLRef(Ref[S]):
    """A `Ref` with read-only SQL over the whole table: every key and version in it, not only this actor's."""

    __slots__ = ()

    async def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[S]:
        """Return the states that ``sql`` selects, after all that this actor has written is in the database.

        The columns are ``key``, ``version``, ``epoch``, ``timestamp`` (seconds since 1970), ``state`` and ``schema``;
        select ``state``, or ``*``. It runs on a connection that can't write.

        Raises:
            UnsupportedOperationError: it would write, or selects no ``state``.
            StateError: it is no valid SQL.

        Example:
            >>> await ref.query("SELECT state FROM states WHERE timestamp > ?", (yesterday,))
        """
        check_text("query", "sql", sql)
        cell = self._live()
        rows = await cell.call(cell.from_backend, "query", sql, params, alone=True)
        return [cell.codec.decode(data, schema) for data, schema in rows]

    async def aggregate(
        self, expression: str, column: str = "state", where: str | None = None, params: Sequence[Any] = ()
    ) -> Any:
        """Return one value over the rows of the table, as ``await ref.aggregate("COUNT(*)", "state")``.

        Raises:
            UnsupportedOperationError: ``expression`` is no aggregate of a column or of a field of the state.
            StateError: ``where`` is no valid SQL.
        """
        check_text("aggregate", "expression", expression)
        cell = self._live()
        return await cell.call(cell.from_backend, "aggregate", expression, column, where, params, alone=True)
