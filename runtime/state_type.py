"""The type variable of an agent's state: where no schema says otherwise, any type."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
else:  # a default is for type checkers, and from Python 3.13 on for everybody
    from typing import TypeVar

    S = TypeVar("S")
