"""What `aggregate` may be asked: one function over one column, checked before it becomes SQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from dgents.runtime.errors import UnsupportedOperationError

_COLUMN = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*"
_EXPRESSION = re.compile(
    rf"(?P<function>COUNT|SUM|MIN|MAX|AVG|TOTAL)(?:\(\s*(?P<distinct>DISTINCT\s+)?(?P<argument>\*|{_COLUMN})\s*\))?",
    re.ASCII | re.IGNORECASE,
)


class Aggregate(NamedTuple):
    """One aggregate: ``argument`` None stands for all rows in which ``column`` is not NULL."""

    function: str
    argument: str | None
    column: str
    distinct: bool = False

    def to_sql(self, table: str, column_sql: Callable[[str], str], where: str | None) -> str:
        """Return the SELECT; ``column_sql`` makes SQL of a checked name, ``where`` is a caller's own SQL."""
        argument = "*" if self.argument is None else column_sql(self.argument)
        distinct = "DISTINCT " if self.distinct else ""
        condition = f" AND ({where})" if where else ""
        return (
            f"SELECT {self.function}({distinct}{argument}) FROM {table} "
            f"WHERE {column_sql(self.column)} IS NOT NULL{condition}"
        )


def parse_aggregate(expression: str, column: str) -> Aggregate:
    """Read ``COUNT(*)``, ``AVG(state.score)``, ``COUNT(DISTINCT key)``; a bare ``MAX`` is that of ``column``.

    Raises:
        UnsupportedOperationError: it is anything else.
    """
    if column == "*":  # as in COUNT(*)
        expression, column = (f"{expression}(*)", "state") if "(" not in expression else (expression, "state")
    match = _EXPRESSION.fullmatch(expression.strip())
    if match is None or not re.fullmatch(_COLUMN, column, re.ASCII):
        raise UnsupportedOperationError(
            f"aggregate({expression!r}, {column!r}) is not supported",
            hint="use COUNT, SUM, MIN, MAX, AVG or TOTAL of a column or a field like state.score, or query",
        )
    argument = match["argument"] or column
    return Aggregate(match["function"].upper(), None if argument == "*" else argument, column, bool(match["distinct"]))
