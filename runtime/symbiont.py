"""Symbionts: pure logic that is given a memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.runtime.ref import Ref

I = TypeVar("I")  # noqa: E741  (input, output, state: the names of the pattern)
O = TypeVar("O")  # noqa: E741
S = TypeVar("S")


class Symbiont(Generic[I, O, S]):
    """Run pure logic on a state that an actor keeps: each call is one turn.

    Args:
        logic: ``logic(input, state) -> (output, new_state)``, sync or async. It may raise; then nothing has changed.
        ref: the actor that keeps the state.
        default: the state of the first call, when nothing was saved.

    Example:
        >>> echo = Symbiont(lambda text, seen: (len(seen), [*seen, text]), ref)
        >>> await echo("hello")
        0
    """

    def __init__(
        self,
        logic: Callable[[I, S], tuple[O, S] | Awaitable[tuple[O, S]]],
        ref: Ref[S],
        *,
        default: Any = MISSING,
    ) -> None:
        if not callable(logic):
            raise TypeError(f"Symbiont: the logic is {type(logic).__name__}; give a function of input and state")
        if not callable(getattr(ref, "update", None)):
            raise TypeError(f"Symbiont: {ref!r} is no ref; give what spawn returned")
        self.logic = logic
        self.ref = ref
        self.default = default

    async def __call__(self, value: I) -> O:
        """Return the output for ``value``, once the new state is durable."""
        output: list[O] = []

        def turn(state: S) -> Any:
            result = self.logic(value, state)
            if isawaitable(result):
                return finish(result)
            return keep(result)

        async def finish(pending: Awaitable[tuple[O, S]]) -> S:
            return keep(await pending)

        async def begin(state: S) -> S:  # calls async logic only once its turn goes on: it may be dropped before
            return keep(await self.logic(value, state))  # type: ignore[misc]

        def keep(result: tuple[O, S]) -> S:
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(f"the logic of a Symbiont returns (output, new_state), not {type(result).__name__}")
            output[:] = [result[0]]
            return result[1]

        await self.ref.update(begin if iscoroutinefunction(self.logic) else turn, default=self.default)
        return output[0]
