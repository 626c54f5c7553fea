"""A TCP proxy on loopback that cuts or holds a connection; in threads, so that any loop may use it."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Direction = Literal["to_server", "to_client"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """Passes bytes both ways between the clients of ``port`` and one server.

    Args:
        target: host and port of the server.
        tls: makes the side of the clients a TLS server.
    """

    def __init__(self, target: tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._cut: tuple[Direction, int] | None = None
        self._flowing = {"to_server": threading.Event(), "to_client": threading.Event()}
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.cuts = 0
        for event in self._flowing.values():
            event.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, direction: Direction, count: int) -> None:
        """Reset the connection that is the next to pass ``count`` bytes this way; later ones are not touched.

        ``cut_after("to_client", 0)`` cuts between the execution of a request and the first byte of its reply.
        """
        with self._lock:
            self._cut = (direction, count)

    def hold(self, direction: Direction) -> None:
        """Keep what goes this way, until `release`."""
        self._flowing[direction].clear()

    def release(self, direction: Direction) -> None:
        """Pass on what was held, even if its sender has given up by now."""
        self._flowing[direction].set()

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for pair in self._pairs:
            self._reset(*pair)

    def close(self) -> None:
        """End every connection, and take no new one."""
        self._listener.close()
        for event in self._flowing.values():
            event.set()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        pair = (client, server)
        self._pairs.append(pair)
        threading.Thread(target=self._pump, args=("to_server", client, server, pair), daemon=True).start()
        self._pump("to_client", server, client, pair)

    def _pump(
        self,
        direction: Direction,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing[direction].wait()
                passed, is_cut = self._allowance(direction, data)
                sink.sendall(passed)
                if is_cut:
                    self._reset(*pair)
                    return
            sink.shutdown(socket.SHUT_WR)

    def _allowance(self, direction: Direction, data: bytes) -> tuple[bytes, bool]:
        """Return what of ``data`` may pass, and whether the connection ends there."""
        with self._lock:
            if self._cut is None or self._cut[0] != direction:
                return data, False
            left = self._cut[1]
            if len(data) < left or (len(data) == left and left > 0 and direction == "to_client"):
                self._cut = (direction, left - len(data))
                return data, False
            self._cut = None
            self.cuts += 1
            return data[:left], True

    def _reset(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def tcp_proxy(target: tuple[str, int], tls: ssl.SSLContext | None = None) -> Iterator[TcpProxy]:
    """Run a proxy while the block lasts."""
    proxy = TcpProxy(target, tls)
    try:
        yield proxy
    finally:
        proxy.close()
