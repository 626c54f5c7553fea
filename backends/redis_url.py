"""Where a Redis is: one server, a sentinel's master, or a cluster; read from a URL.

| form | what it names |
|---|---|
| `redis://[user:password@]host[:6379][/db]` | one server; `rediss://` with TLS |
| `unix://[user:password@]/path/to/socket` | one server, by its socket |
| `redis+sentinel://[user:password@]host[:26379],.../service[/db]` | a master; `rediss+sentinel://` |
| `redis+cluster://[user:password@]host[:6379],...` | a cluster; `rediss+cluster://` |

Options of redis-py follow as a query: `?socket_timeout=2&ssl_ca_certs=/etc/ca.pem`. Sentinels have their own
`sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from dgents.backends.url import ENCODE, scheme_of, split_host, split_url

Kind = Literal["server", "sentinel", "cluster"]

_SCHEMES: dict[str, tuple[Kind, str]] = {
    "redis": ("server", "redis"),
    "rediss": ("server", "rediss"),
    "unix": ("server", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_NAME = "redis_url"
_DATABASE = re.compile(r"[0-9]{1,9}", re.ASCII)
_SECONDS, _NUMBER, _SWITCH, _TEXT = r"\d{1,9}(\.\d{1,9})?", r"\d{1,9}", "0|f|false|n|no|1|t|true|y|yes", r"(?s:.+)"
# The options of redis-py, and how their values look; the first four are decided here and say nothing.
_OPTIONS = {
    "max_connections": _NUMBER,
    "timeout": _SECONDS,
    "decode_responses": _SWITCH,
    "retry_on_timeout": _SWITCH,
    "username": _TEXT,
    "password": _TEXT,
    "db": _NUMBER,
    "client_name": _TEXT,
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _SWITCH,
    "socket_read_size": _NUMBER,
    "health_check_interval": _NUMBER,
    "protocol": "2|3",
}
_TLS_OPTIONS = {
    "ssl_keyfile": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_password": _TEXT,
    "ssl_cert_reqs": "none|optional|required",
    "ssl_ca_certs": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_check_hostname": _SWITCH,
    "ssl_min_version": _NUMBER,
    "ssl_ciphers": _TEXT,
}
_SECRETS = ("password", "ssl_password")


@dataclass(frozen=True)
class RedisPlace:
    """What a URL says.

    Attributes:
        hosts: (host, port) of each server, sentinel or cluster node that is named; empty for a socket.
        base: a URL that redis-py itself understands, of the first host.
        safe: how the place may be called in messages: without user, password and options.
        secrets: what must never be in a message.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    base: str = field(repr=False)
    service: str
    safe: str
    sentinel_options: dict[str, str] = field(repr=False, hash=False, compare=False)
    secrets: tuple[str, ...] = field(repr=False)

    @property
    def database(self) -> tuple[object, ...]:
        """What decides which database it is; the same for another user, password or option."""
        parts = urlsplit(self.base)
        socket = parts.path if parts.scheme == "unix" else ""
        number = dict(parse_qsl(parts.query)).get("db") or ("" if socket else parts.path.strip("/"))
        return self.kind, self.hosts, self.service, socket, number or "0"

    def scrub(self, text: str) -> str:
        """Return ``text`` without the passwords of the URL."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def parse_redis_url(url: str) -> RedisPlace:
    """Read a URL; nothing is connected.

    Raises:
        TypeError: it is no text.
        ValueError: it is no such URL. Nothing of it is in the message, since any piece may be one of a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"redis_url is {type(url).__name__}; give a URL, such as redis://localhost:6379/0")
    name = scheme_of(url)
    if name not in _SCHEMES:
        raise ValueError(f"redis_url begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    kind, scheme = _SCHEMES[name]
    parts = split_url(url, _NAME)
    query = parts.query
    sentinel_options = {option[9:]: query.pop(option) for option in list(query) if option.startswith("sentinel_")}
    _check_options(query, sentinel_options, kind, scheme)
    user, password = query.pop("username", parts.user), query.pop("password", parts.password)
    if parts.user not in ("", user) or parts.password not in ("", password):
        raise ValueError("redis_url names two users or two passwords: in front of the host and as an option")
    hosts: tuple[tuple[str, int], ...] = ()
    if scheme == "unix":
        if parts.hosts or parts.path.strip("/") == "" or "\0" in parts.path:
            raise ValueError(f"redis_url names no socket: write unix:///path/to/socket; {ENCODE}")
        where, service = quote(parts.path), ""
        database = query.pop("db", "")
    else:
        hosts = tuple(_host(one, kind) for one in parts.hosts.split(","))
        if len(hosts) > 1 and kind == "server":
            raise ValueError("redis_url names several hosts: use redis+cluster:// or redis+sentinel:// for them")
        where, (service, database) = _netloc(*hosts[0]), _path(parts.path, query.pop("db", ""), kind)
    if (database and not _DATABASE.fullmatch(database)) or (kind == "cluster" and database.strip("0")):
        raise ValueError(f"redis_url has a database that is no number (a cluster has number 0 only); {ENCODE}")
    if database:
        query["db"] = database
    userinfo = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    shown = where if scheme == "unix" else ",".join(_netloc(*host) for host in hosts)
    if parts.path.strip("/") and scheme != "unix":
        shown += "".join(f"/{quote(part)}" for part in (service, database) if part)
    found = {password, *(options.get(secret, "") for secret in _SECRETS for options in (query, sentinel_options))}
    found |= {quote(secret, safe="") for secret in found}
    return RedisPlace(
        kind=kind,
        hosts=hosts,
        base=f"{scheme}://{userinfo}{where}{f'?{urlencode(query)}' if query else ''}",
        service=service,
        safe=f"{name}://{shown}",
        sentinel_options=sentinel_options,
        secrets=tuple(sorted((secret for secret in found if secret), key=len, reverse=True)),
    )


def _path(path: str, database: str, kind: Kind) -> tuple[str, str]:
    """Return the service and the database that a path names; ``database`` is what the options say."""
    segments = [segment for segment in path.split("/") if segment]
    service = ""
    if kind == "sentinel":
        if not segments:
            raise ValueError("redis_url ends in the name of its service: redis+sentinel://host:26379/mymaster")
        service = segments.pop(0)
    if len(segments) > 1 or (segments and database not in ("", segments[0])):
        raise ValueError(f"redis_url names more than one database; {ENCODE}")
    return service, segments[0] if segments else database


def _host(text: str, kind: Kind) -> tuple[str, int]:
    host, port = split_host(text, _NAME, _PORTS[kind])
    return host or "localhost", port


def _check_options(query: dict[str, str], sentinel_options: dict[str, str], kind: Kind, scheme: str) -> None:
    known = _OPTIONS.keys() | (_TLS_OPTIONS.keys() if scheme == "rediss" else set())
    if not query.keys() <= known or not sentinel_options.keys() <= {"username", "password"}:
        names = ", ".join(sorted(known))
        raise ValueError(f"redis_url has an option that is not known (those of TLS need rediss://); there are {names}")
    if sentinel_options and kind != "sentinel":
        raise ValueError("redis_url has options for sentinels; they need redis+sentinel://")
    for option, value in query.items():
        kept = (_OPTIONS | _TLS_OPTIONS)[option]
        if not re.fullmatch(kept, value, re.ASCII | re.IGNORECASE) or (kept is _SECONDS and not float(value)):
            raise ValueError(f"redis_url has an option {option} whose value can't be right; {ENCODE}")


def _netloc(host: str, port: int) -> str:
    return f"[{quote(host, safe=':')}]:{port}" if ":" in host else f"{host}:{port}"
