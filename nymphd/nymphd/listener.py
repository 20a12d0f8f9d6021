# SPDX-License-Identifier: MIT
"""Accepting connections: strangers cost little, and do not keep out clients with the token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import itertools
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from nymphd.log import log
from nymphd.meters import TURNED_AWAY

Client = tuple[str, int]

_ACCEPTS = 16  # in one turn of the loop
_MOST_WAITING = 1024  # of those that have sent nothing, and of those for whom there is no room
_GRACE_S = 2.0  # a stranger has so long before it has to make room for another
_SHUTDOWN_S = 5.0  # of TLS, for peers that do not answer
_LOOK_EVERY_S = 0.25
_TELL_EVERY_S = 10.0


class _Connection:
    """Describe a connection that has not sent the token yet."""

    def __init__(self, accepted: socket.socket, client: Client) -> None:
        self.socket = accepted
        self.client = client
        self.network = _network(client[0])
        self.since = time.monotonic()
        self.opening: asyncio.Task[Any] | None = None
        self.transport: asyncio.Transport | None = None

    @property
    def is_closed(self) -> bool:
        return self.transport is not None and self.transport.is_closing()

    def close(self) -> None:
        """Close the connection in any state."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()
        else:
            self.socket.close()


class _Table:
    """Keep connections in the order of arrival, and the number of each network's.

    The key is not the client's address: a new connection can come from the port of one whose reset is unseen.
    """

    def __init__(self) -> None:
        self.rows: dict[_Connection, None] = {}
        self.shares: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, one: _Connection) -> None:
        self.rows[one] = None
        self.shares[one.network] += 1

    def remove(self, one: _Connection) -> bool:
        """Remove a connection. Returns whether it was in the table."""
        if one not in self.rows:
            return False
        del self.rows[one]
        self.shares[one.network] -= 1
        if not self.shares[one.network]:
            del self.shares[one.network]
        return True

    def oldest(self, network: str) -> _Connection:
        """Return the oldest connection of the network with most of them; of `network` if none has more."""
        most = max(self.shares, key=lambda each: (self.shares[each], each == network))
        return next(each for each in self.rows if each.network == most)


class Listener:
    """Accept connections, and keep those without the token in three tables.

    `silent` connections have sent nothing yet. `ready` connections wait for room to start TLS, the newest
    first. Both kinds cost no more than a socket. `strangers` have TLS.

    A network may have half of each table. The oldest connection of the network that has most makes room; a
    stranger does so only after some time. welcome() removes a connection that has the token from its table.
    """

    def __init__(
        self,
        listening: socket.socket,
        make_protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        context: ssl.SSLContext,
        most_strangers: int,
        timeout_s: float,
    ) -> None:
        """Start to accept connections. The caller has a running event loop.

        `make_protocol`: gets a callback for the end of the connection. `timeout_s`: longest time to the first
        byte, and of the TLS handshake, in seconds.
        """
        self.context = context
        """For connections from now on."""
        self._listening = listening
        self._make_protocol = make_protocol
        self._most_strangers = most_strangers
        self._timeout_s = timeout_s
        self._silent, self._ready, self._strangers = _Table(), _Table(), _Table()
        self._stranger_at: dict[Client, _Connection] = {}  # the newest
        self._loop = asyncio.get_running_loop()
        self._turned_away = 0
        self._told_at = float("-inf")
        self._looking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept)
        self._look()

    def close(self) -> None:
        """Accept no more connections, and close those without TLS."""
        self._loop.remove_reader(self._listening)
        if self._looking is not None:
            self._looking.cancel()
        for table in (self._silent, self._ready):
            for one in list(table.rows):
                self._drop(one)
        for one in list(self._strangers.rows):
            if one.transport is None:
                self._drop(one)

    async def wait_closed(self) -> None:
        """Return at once: there is nothing to wait for."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of unknown connections without TLS and with it."""
        return {"waiting": len(self._silent) + len(self._ready), "stranger": len(self._strangers)}

    def welcome(self, client: Client) -> None:
        """Note that a request of `client` had the token or a valid cookie."""
        one = self._stranger_at.get(client)
        if one is not None:
            self._remove(one)

    def _remove(self, one: _Connection) -> None:
        """Remove a connection that is known now, or has ended."""
        if self._remove_stranger(one):
            self._promote()

    def _remove_stranger(self, one: _Connection) -> bool:
        if self._stranger_at.get(one.client) is one:
            del self._stranger_at[one.client]
        return self._strangers.remove(one)

    # --- connections without TLS ---

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no files are left, say
                log.error("no connection can be accepted", reason=error.strerror)
                self._loop.remove_reader(self._listening)
                self._loop.call_later(1, self._accept_again)
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one = _Connection(accepted, (str(address[0]), int(address[1])))
            self._make_room(self._silent, one.network)
            self._silent.add(one)
            self._loop.add_reader(accepted, self._spoke, one)

    def _accept_again(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # the client has closed it
            self._loop.add_reader(self._listening, self._accept)

    def _make_room(self, table: _Table, network: str) -> None:
        if len(table) >= _MOST_WAITING or table.shares[network] >= _MOST_WAITING // 2:
            self._turn_away(table.oldest(network), "waiting")

    def _spoke(self, one: _Connection) -> None:
        self._loop.remove_reader(one.socket)
        self._silent.remove(one)
        self._make_room(self._ready, one.network)
        self._ready.add(one)
        self._promote()

    def _promote(self) -> None:
        """Start TLS on ready connections while there is room."""
        share = max(1, self._most_strangers // 2)
        if not self._ready or len(self._strangers) >= self._most_strangers:
            return
        if all(self._strangers.shares[network] >= share for network in self._ready.shares):
            return
        for one in list(reversed(self._ready.rows)):
            if len(self._strangers) >= self._most_strangers:
                return
            if self._strangers.shares[one.network] < share:
                self._ready.remove(one)
                one.since = time.monotonic()
                self._strangers.add(one)
                self._stranger_at[one.client] = one
                one.opening = self._loop.create_task(self._open(one))

    async def _open(self, one: _Connection) -> None:
        try:
            one.transport, _ = await self._loop.connect_accepted_socket(
                functools.partial(self._make_protocol, functools.partial(self._remove, one)),
                one.socket,
                ssl=self.context,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except (OSError, asyncio.CancelledError):  # ssl.SSLError is the former
            pass
        except Exception:
            log.exception("a connection failed")
        if one.transport is None:
            one.socket.close()
            self._remove(one)

    def _look(self) -> None:
        """Close connections that waited too long, and strangers if others need room."""
        self._looking = self._loop.call_later(_LOOK_EVERY_S, self._look)
        now = time.monotonic()
        for table in (self._silent, self._ready):
            for one in list(itertools.takewhile(lambda one: now - one.since > self._timeout_s, table.rows)):
                self._drop(one)
        for one in [each for each in self._strangers.rows if each.is_closed]:
            self._remove(one)
        wanted = self._ready.shares.copy()
        for one in list(self._strangers.rows):
            if not wanted or now - one.since < _GRACE_S:
                break
            if one.network in wanted or len(self._strangers) >= self._most_strangers:
                wanted -= Counter([one.network if one.network in wanted else next(iter(wanted))])
                self._turn_away(one, "stranger")
        self._promote()
        if self._turned_away and now - self._told_at > _TELL_EVERY_S:
            log.warning("strangers are turned away", connections=self._turned_away, **self.counts())
            self._told_at, self._turned_away = now, 0

    def _turn_away(self, one: _Connection, kind: str) -> None:
        TURNED_AWAY.labels(kind).inc()
        self._turned_away += 1
        self._drop(one)

    def _drop(self, one: _Connection) -> None:
        if self._silent.remove(one):
            self._loop.remove_reader(one.socket)
        self._ready.remove(one)
        self._remove_stranger(one)
        one.close()


def _network(address: str) -> str:
    """Return the network of an address: the first 64 bits of IPv6, whose rest a client can choose."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6 and (found.ipv4_mapped is None):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
