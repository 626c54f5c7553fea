"""The URL of a server, taken apart strictly: what could be read in two ways is refused, and nothing of it is repeated.

A reserved character in a password that was not percent-encoded moves the borders of the parts. Then a piece of the
password would be looked up as a host, stand in messages as the name of a database, or be left out in silence.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

ENCODE = "percent-encode user, password and values: %40 for @, %2F for /, %3A for :, %3F for ?, %23 for #, %25 for %"

_SERVERS = {"redis", "rediss", "postgres", "postgresql", "mysql", "mariadb", "unix"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,19}", re.ASCII)
_BROKEN = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


class Url(NamedTuple):
    """The parts of a URL, decoded but for ``hosts``, which names one or several."""

    user: str
    password: str
    hosts: str
    path: str
    query: dict[str, str]


def scheme_of(url: str) -> str:
    """Return what stands in front of ``://``, in lower case; empty if that is no scheme, and may be a secret."""
    scheme, colon, _ = url.partition("://")
    return scheme.lower() if colon and _SCHEME.fullmatch(scheme) else ""


def is_half_a_url(path: str) -> bool:
    """Say whether what is to be a path begins as the URL of a server does, which may hold a password."""
    scheme, colon, _ = path.partition(":")
    return bool(colon) and scheme.strip().lower().partition("+")[0] in _SERVERS


def split_url(url: str, name: str) -> Url:
    """Take a URL apart.

    Args:
        name: what to call it in errors.

    Raises:
        ValueError: it can't be read in one way only. Nothing of it is in the message.
    """
    rest = url.partition("://")[2]
    check_characters(rest, name)
    if "#" in rest:
        raise ValueError(f"{name} has a # in it; {ENCODE}")
    if _BROKEN.search(rest):
        raise ValueError(f"{name} has a % that two hexadecimal digits don't follow; {ENCODE}")
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    if authority.count("@") > 1 or "@" in path or "@" in query:
        raise ValueError(f"{name} has an @ where none can be; {ENCODE}")
    userinfo, _, hosts = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    return Url(_decode(user, name), _decode(password, name), hosts, slash + _decode(path, name), _query(query, name))


def check_characters(url: str, name: str) -> None:
    """Refuse what no URL has in it, and what some readers leave out in silence.

    Raises:
        ValueError: there is some. Nothing of it is in the message.
    """
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"{name} has a space or a control character in it; write %20 for a space; {ENCODE}")


def split_host(text: str, name: str, port: int) -> tuple[str, int]:
    """Read ``host``, ``host:port`` or ``[address]:port``; ``port`` is the one to take where none is named.

    Raises:
        ValueError: it is no host and port. Nothing of it is in the message.
    """
    host, colon, number = text.rpartition(":")
    if not colon or number.endswith("]"):
        host, number = text, str(port)
    if not _PORT.fullmatch(number) or not 0 < int(number) < 65536:
        raise ValueError(f"{name} has a port that is no number from 1 to 65535; {ENCODE}")
    if host.startswith("[") and host.endswith("]"):
        host = _decode(host[1:-1], name)
        if ":" not in host:
            raise ValueError(f"{name} has brackets around what is no IPv6 address; {ENCODE}")
    elif ":" in host:
        raise ValueError(f"{name} has an IPv6 address without brackets, or a : too many; {ENCODE}")
    return check_host(host, name), int(number)


def check_host(host: str, name: str) -> str:
    """Return a host as it may be looked up: a name, in ASCII, or an address; empty for none.

    Raises:
        ValueError: it is none. Nothing of it is in the message.
    """
    if host and ":" not in host:
        host = _ascii(host)
        is_one = _HOST.fullmatch(host) is not None
    else:
        is_one = not host or _is_address(host)
    if not is_one:
        raise ValueError(f"{name} has a host that is no name of a host; {ENCODE}")
    return host


def _is_address(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return ""


def _query(text: str, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        option, equals, value = pair.partition("=")
        option = _decode(option, name)
        if not (option and equals and value) or option in found:
            raise ValueError(f"{name} has an option without a value, or one that stands there twice; {ENCODE}")
        found[option] = _decode(value, name)
    return found


def _decode(text: str, name: str) -> str:
    data = unquote_to_bytes(text)
    decoded = data.decode("utf-8", "replace")
    if decoded.encode() != data:
        raise ValueError(f"{name} has percent-encoded bytes that are no UTF-8; {ENCODE}")
    return decoded
