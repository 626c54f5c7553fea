"""URLs with passwords in them: read in one way only or refused, and no piece of a password is ever shown."""

from __future__ import annotations

import string
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

import pytest
from psycopg.conninfo import conninfo_to_dict

from dgents import RedisAgent, Runtime, SQLAgent, StorageError, StreamAgent
from dgents.backends.postgres_place import parse_postgres_url
from dgents.backends.redis_client import client_options
from dgents.backends.redis_url import parse_redis_url
from dgents.cli import main
from dgents.places import locate
from tests.redis_server import free_port

HOST, WORDS = "db.example", ("qxj7", "wvk8", "zpf9")
# What may stand raw in a password because somebody forgot to encode it.
PIECES = [
    *string.punctuation,
    "//",
    "://",
    "@:",
    "#?",
    "?#",
    "/?",
    "%2",
    "%zz",
    "%ff",
    "%00",
    "%0a",
    "%40",
    "%2F",
    "%3A",
]
PIECES += [
    " ",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\x7f",
    "\u00a0",
    "\u200b",
    "\u202e",
    "ä",
    "ｅ",
    "℀",
    "\u2100",
    "\ud800",
    "🔑",
]
REDIS = {
    "redis": "redis://{}{}/0",
    "rediss": "rediss://{}{}:7/0",
    "unix": "unix://{}/tmp/none.sock",
    "sentinel": "redis+sentinel://{}{},other/main/0",
    "cluster": "redis+cluster://{}{},other:7",
}
POSTGRES = "postgresql://{}{}/base"


def secrets() -> Iterator[str]:
    for piece in PIECES:
        yield piece.join(WORDS)
        yield piece + WORDS[0]
        yield WORDS[0] + piece
        yield f"12{piece}{WORDS[0]}"


def urls() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, URL, password) with the password raw in each place where one can stand."""
    for secret in secrets():
        for kind, form in {**REDIS, "postgresql": POSTGRES, "postgres": POSTGRES.replace("ql", "")}.items():
            for userinfo in (f":{secret}@", f"ada:{secret}@"):
                yield kind, form.format(userinfo, "" if kind == "unix" else HOST), secret
            url = form.format("", "" if kind == "unix" else HOST)
            yield kind, f"{url}?password={secret}", secret
            yield kind, f"{url}?{'sslpassword' if 'postgres' in kind else 'ssl_password'}={secret}", secret


def everything_said(error: BaseException) -> str:
    """Return what an error and all that it was raised from and after can show."""
    said, todo = "", [error]
    while todo:
        one = todo.pop()
        said += f"{one} {one!r} {one.args!r} {getattr(one, 'object', '')!r}"
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
    return said + "".join(traceback.format_exception_only(error))


def shows(text: str) -> list[str]:
    """Return the pieces of the password, of three characters and more, that are in a text."""
    return [word[i : i + 3] for word in WORDS for i in range(len(word) - 2) if word[i : i + 3] in text]


def fold(state: Any, event: Any) -> Any:
    return state


MAKERS: dict[str, Callable[[str], Any]] = {
    "RedisAgent": RedisAgent,
    "SQLAgent": SQLAgent,
    "StreamAgent": lambda url: StreamAgent(fold, 0, event_log=url),
    "locate": locate,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_no_piece_of_a_password_is_shown_whatever_is_in_it(maker: str) -> None:
    for _, url, _ in urls():
        try:
            said = repr(made := MAKERS[maker](url)) + str(getattr(made, "safe", ""))
        except ValueError as error:
            said = everything_said(error)
        assert not shows(said), (url, said)


def test_a_redis_url_that_is_taken_names_the_host_and_the_password_that_its_writer_meant() -> None:
    taken = 0
    for kind, url, secret in urls():
        if "postgres" in kind:
            continue
        try:
            place = parse_redis_url(url)
        except ValueError:
            continue
        taken += 1
        options = client_options(place)
        assert unquote(secret) in (options.get("password"), options.get("ssl_password"))
        assert {host for host, _ in place.hosts} <= {HOST, "other"}
        assert not shows(place.safe + place.scrub(unquote(secret)))
    assert taken > 100


def test_a_postgresql_url_that_is_taken_names_the_host_that_its_writer_meant() -> None:
    taken = 0
    for kind, url, secret in urls():
        if "postgres" not in kind or "&" in secret:  # there, the next option begins
            continue
        try:
            place = parse_postgres_url(url)
        except ValueError:
            continue
        taken += 1
        found = conninfo_to_dict(url)
        assert (found.get("host"), found.get("dbname")) == (HOST, "base"), url
        assert unquote(secret) in (found.get("password"), found.get("sslpassword"))
        assert not shows(place.safe + repr(place) + place.scrub(unquote(secret)))
    assert taken > 100


@pytest.mark.parametrize("kind", [*REDIS, "postgresql"])
def test_every_password_is_taken_once_it_is_encoded(kind: str) -> None:
    for secret in secrets():
        if "%" in secret or "\0" in secret or "\ud800" in secret:
            continue
        form = {**REDIS, "postgresql": POSTGRES}[kind]
        url = form.format(f"ada:{quote(secret, safe='')}@", "" if kind == "unix" else HOST)
        if kind == "postgresql":
            assert parse_postgres_url(url)
            assert conninfo_to_dict(url)["password"] == secret
        else:
            assert client_options(parse_redis_url(url))["password"] == secret
            assert client_options(parse_redis_url(url))["username"] == "ada"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/x",
        "redis://h/1/2",
        "redis://h/1?db=2",
        "redis://h/-1",
        "redis://h/٣",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:6379x",
        "redis://a,b",
        "redis://::1",
        "redis://[::1",
        "redis://[h]",
        "redis://a..b",
        "redis://" + "a" * 64,
        "redis://h?db",
        "redis://h?db=",
        "redis://h?db=1&db=2",
        "redis://h?nonsense=1",
        "redis://h?socket_timeout=nan",
        "redis://h?socket_timeout=-1",
        "redis://h?socket_timeout=0",
        "redis://h?ssl_ca_certs=/x",
        "redis://h?sentinel_password=x",
        "redis://u:x@h?password=y",
        "redis+cluster://h/1",
        "redis+sentinel://h",
        "redis+sentinel://h/main/x",
        "unix://folder/socket",
        "unix://",
        "http://h",
        "h",
        "",
    ],
)
def test_a_redis_url_that_would_be_taken_for_another_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis_url"):
        RedisAgent(url)


@pytest.mark.parametrize("given", [b"redis://:qxj7wvk8@h", ["redis://:qxj7wvk8@h"], None])
def test_what_is_no_text_is_not_repeated(given: Any) -> None:
    with pytest.raises(TypeError) as refused:
        RedisAgent(given)
    assert not shows(everything_said(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada%3Aqxj7%40h/d",
        "postgresql://ada:qxj7@h:12,h:zpf9/d",
        "postgresql:/ada:qxj7wvk8@h/d",
        "postgresql:ada:qxj7wvk8@h/d",
        "POSTGRESQL://ada:qxj7wvk8@h/d",
        " postgresql://ada:qxj7wvk8@h/d",
        "postgresql+psycopg://ada:qxj7wvk8@h/d",
        "postgresql://ada:qxj7wvk8@h/d\0",
        "mysql:ada:qxj7wvk8@h",
        "qxj7:wvk8://zpf9@h",
        "sqlite://ada:qxj7wvk8@h/d",
        "sqlite:///x.db?password=qxj7wvk8",
    ],
)
@pytest.mark.parametrize("maker", ["SQLAgent", "StreamAgent"])
def test_what_is_almost_a_url_is_refused_and_not_repeated(url: str, maker: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        MAKERS[maker](url)
    assert not shows(everything_said(refused.value))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [*REDIS, "postgresql"])
async def test_a_server_that_is_not_there_shows_no_password_anywhere(
    kind: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    form = {**REDIS, "postgresql": POSTGRES}[kind].replace(",other", "").replace(":7", "")
    address = "" if kind == "unix" else f"127.0.0.1:{free_port()}"
    url = form.format(f"ada:{quote('#/?@: %'.join(WORDS), safe='')}@", address)
    agent: Any = SQLAgent(url) if kind == "postgresql" else RedisAgent(url)
    said: list[str] = [repr(agent)]
    async with Runtime(on_event=lambda event: said.append(repr(event))) as rt:
        with pytest.raises(StorageError) as refused:
            await rt.spawn("n", agent)
        said += [everything_said(refused.value), rt.tree(), repr(rt.stats())]
    captured = capfd.readouterr()
    assert not shows("".join([*said, captured.out, captured.err, caplog.text]))


@pytest.mark.parametrize("command", ["inspect", "verify", "history", "copy"])
@pytest.mark.parametrize("kind", [*REDIS, "postgresql"])
def test_the_command_line_shows_no_password(kind: str, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    form = {**REDIS, "postgresql": POSTGRES}[kind].replace(",other", "").replace(":7", "")
    address = "" if kind == "unix" else f"127.0.0.1:{free_port()}"
    for secret in ("#/?@: %".join(WORDS), quote("#/?@: %".join(WORDS), safe="")):
        url = form.format(f"ada:{secret}@", address)
        arguments = {"history": [url, "n"], "copy": [url, "/nowhere/x.db"]}.get(command, [url])
        assert main([command, *arguments]) == 2
        captured = capfd.readouterr()
        assert not shows(captured.out + captured.err)
        assert len(captured.err.splitlines()) == 1
