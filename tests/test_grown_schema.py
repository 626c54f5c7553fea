"""A class that has got fields since its states were stored: a part is what it is in the whole, and stays so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

import dgents

pytestmark = pytest.mark.anyio


@dataclasses.dataclass
class Home:
    town: str = "Oslo"
    zip: str = "0"


@cache
def as_dataclass(level: int) -> Any:
    new = [("level", int, level), ("home", Home, dataclasses.field(default_factory=Home))]
    return dataclasses.make_dataclass("User", [("name", str), *(new if level else [])])


@cache
def as_struct(level: int) -> Any:
    new = [("level", int, level), ("home", Home, msgspec.field(default_factory=Home))]
    return msgspec.defstruct("User", [("name", str), *(new if level else [])], omit_defaults=True)


@cache
def as_attrs(level: int) -> Any:
    new = {"level": attrs.field(default=level, type=int), "home": attrs.field(factory=Home, type=Home)}
    return attrs.make_class("User", {"name": attrs.field(type=str), **(new if level else {})})


@cache
def as_model(level: int) -> Any:
    new: Any = {"level": (int, level), "home": (Home, pydantic.Field(default_factory=Home))} if level else {}
    return pydantic.create_model("User", name=(str, ...), **new)


CLASSES = [as_dataclass, as_struct, as_attrs, as_model]
AGENTS: dict[str, Callable[..., Any]] = {
    "json": lambda path, **more: dgents.PersistentAgent(path / "state", **more),
    "msgpack": lambda path, **more: dgents.PersistentAgent(path / "state", format="msgpack", **more),
    "sqlite": lambda path, **more: dgents.SQLAgent(str(path / "s.db"), **more),
    "cached": lambda path, **more: dgents.CachedAgent(
        dgents.VolatileAgent(), dgents.PersistentAgent(path / "state", format="msgpack", **more), policy="write-behind"
    ),
}


@pytest.fixture(params=AGENTS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    return lambda schema, **more: AGENTS[request.param](tmp_path, schema=schema, **more)


async def in_turn(agent: Any, *calls: Callable[[Any], Any]) -> Any:
    """Open the state with ``agent``, make the calls, and return what the last one returned."""
    reply = None
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("user", agent)
        for call in calls:
            reply = await call(ref)
    return reply


CHANGES: dict[str, Callable[[Any], Any]] = {
    "update": lambda ref: ref.update(lambda user: user),
    "patch": lambda ref: ref.patch({"name": "Eva"}),
    "patch of a default": lambda ref: ref.patch({"home.zip": "1"}),
    "lens": lambda ref: ref.at("name").save("Eva"),
    "lens on a default": lambda ref: ref.at("home.zip").save("1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", CLASSES)
async def test_a_default_is_stored_with_the_next_change_and_stays_when_it_becomes_another(
    anyio_backend: str, make: Callable[..., Any], kind: Callable[[int], Any], change: str
) -> None:
    await in_turn(make(kind(0)), lambda ref: ref.save(kind(0)(name="Ada")))
    await in_turn(make(kind(5)), CHANGES[change], CHANGES["patch"])
    user = await in_turn(make(kind(7)), lambda ref: ref.load())
    assert (user.level, user.home.town) == (5, "Oslo")
    assert user.home.zip == ("1" if "default" in change else "0")


@pytest.mark.parametrize("kind", CLASSES)
async def test_a_lens_sees_the_default_that_load_shows(
    anyio_backend: str, make: Callable[..., Any], kind: Callable[[int], Any]
) -> None:
    await in_turn(make(kind(0)), lambda ref: ref.save(kind(0)(name="Ada")))
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("user", make(kind(5)))
        assert await ref.at("level").load() == (await ref.load()).level == 5
        assert await ref.at("home.town").load() == "Oslo"
        assert await ref.at("level").update(lambda level: level + 1) == 6
        assert (await ref.load()).level == 6


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_to_a_migrated_state_is_a_change_to_what_the_migration_made(
    anyio_backend: str, make: Callable[..., Any], change: str
) -> None:
    migrations = {1: lambda tree: {"name": tree["nick"]}}
    await in_turn(make(None), lambda ref: ref.save({"nick": "Ada"}))
    await in_turn(make(as_dataclass(5), migrations=migrations), CHANGES[change], CHANGES["patch of a default"])
    user = await in_turn(make(as_dataclass(7), migrations=migrations), lambda ref: ref.load())
    assert (user.name, user.level, user.home) == ("Eva" if change in ("patch", "lens") else "Ada", 5, Home("Oslo", "1"))


async def test_what_is_not_stored_because_it_equals_its_default_is_stored(
    anyio_backend: str, make: Callable[..., Any]
) -> None:
    await in_turn(make(as_struct(5)), lambda ref: ref.save(as_struct(5)(name="Ada")))
    assert (await in_turn(make(as_struct(7)), lambda ref: ref.load())).level == 5
