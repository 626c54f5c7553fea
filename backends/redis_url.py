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

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

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
        ValueError: it is no such URL. The URL itself is not in the message, since it may hold a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"redis_url is {url!r}; give a URL, such as redis://localhost:6379/0")
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"a Redis URL begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}; "
            f"this one has the scheme {parts.scheme[:20]!r}"
        )
    kind, scheme = _SCHEMES[parts.scheme]
    userinfo, at, where = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query))
    sentinel_options = {name[9:]: query.pop(name) for name in list(query) if name.startswith("sentinel_")}
    hosts = () if scheme == "unix" else tuple(_host(one, kind) for one in where.split(","))
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    service = ""
    path = parts.path
    if kind == "sentinel":
        if not segments:
            raise ValueError("a sentinel URL ends in the name of its service: redis+sentinel://host:26379/mymaster")
        service, path = segments[0], "/".join(["", *segments[1:]])
    first = where if scheme == "unix" else _netloc(*hosts[0])
    tail = f"?{urlencode(query)}" if query else ""
    _, _, password = userinfo.partition(":")
    found = {password, unquote(password), query.get("password", ""), sentinel_options.get("password", "")}
    return RedisPlace(
        kind=kind,
        hosts=hosts,
        base=f"{scheme}://{userinfo}{at}{first}{path}{tail}",
        service=service,
        safe=f"{parts.scheme}://{','.join(_netloc(*host) for host in hosts)}{parts.path}",
        sentinel_options=sentinel_options,
        secrets=tuple(sorted((secret for secret in found if secret), key=len, reverse=True)),
    )


def _host(text: str, kind: Kind) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(_PORTS[kind])
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"the port of a Redis URL is a number up to 65535, this one has {port[:20]!r}")
    return host.strip("[]") or "localhost", int(port)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
