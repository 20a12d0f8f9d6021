# SPDX-License-Identifier: MIT
"""TCP connections from the host into a guest that has no network: all of them over one stream of bytes.

On the host a thread listens, and has an end of each connection. In the guest this file is a program whose
standard input is the stream; it connects to the guest's own ports.

A frame is a kind, a connection's number and a value; after DATA that many bytes follow. A side sends at most
WINDOW bytes more than the other has passed on, so a connection that nobody reads delays no other.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable

FRAME = struct.Struct("<BII")
OPEN, DATA, PASSED_ON, END, RESET, TAKEN = range(1, 7)
WINDOW = 1 << 20
AT_ONCE = 1 << 15

# What a serial line of user-mode Linux may have unread. From 3,968 bytes on the line is throttled, and
# the kernel (7.3) never again looks for what comes.
LINE = 3000


class _Connection:
    def __init__(self, end: socket.socket, number: int) -> None:
        end.setblocking(False)
        self.end, self.number = end, number
        self.credit = WINDOW  # what the other side takes
        self.waiting = bytearray()  # for our end
        self.sent_end = self.got_end = self.told_end = False


class Relay:
    """One side of it."""

    def __init__(self, link: int, *, most: int = 0) -> None:
        """link: an open file, the stream; it stays the caller's.

        most: how many bytes the other side may have unread, which then says what it takes; 0 on that side.
        """
        os.set_blocking(link, False)
        self._link, self._takes, self._room = link, not most, most
        self._selector = selectors.DefaultSelector()
        self._selector.register(link, selectors.EVENT_READ)
        self._out, self._in = bytearray(), bytearray()
        self._connections: dict[int, _Connection] = {}
        self._next = 0
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listening: dict[socket.socket, int] = {}
        self._todo: list[Callable[[], object]] = []
        self._closing = False

    def forward(self, port: int, preferred: int = 0) -> int:
        """Let a port on this side's loopback lead to the other's; returns its number, `preferred` if free."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", preferred))
        except OSError:
            listening.bind(("127.0.0.1", 0))
        listening.listen()
        self._listening[listening] = port
        self._do(lambda: self._selector.register(listening, selectors.EVENT_READ))
        return int(listening.getsockname()[1])

    def start(self) -> None:
        """Have a thread run it, until close()."""
        self._thread = threading.Thread(target=self.run, name="relay")
        self._thread.start()

    def close(self) -> None:
        """End the thread, and all connections."""
        self._closing = True
        self._do(lambda: None)
        self._thread.join()
        for end in (self._waker, self._woken):
            end.close()
        self._selector.close()

    def _do(self, what: Callable[[], object]) -> None:
        self._todo.append(what)
        self._waker.send(b"\0")

    def run(self) -> None:
        """Pass on what comes, until close() or the end of the stream, which ends all connections."""
        try:
            self._pass_on()
        finally:
            for end in (*(each.end for each in self._connections.values()), *self._listening):
                end.close()

    def _pass_on(self) -> None:
        while not self._closing:
            for key, events in self._selector.select():
                if key.fileobj == self._link:
                    if not self._serve_link(events):
                        return
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                    while self._todo:
                        self._todo.pop(0)()
                elif isinstance(key.data, _Connection):
                    if key.data.number in self._connections:  # not dropped just now
                        self._serve(key.data, events)
                elif isinstance(key.fileobj, socket.socket):
                    end, _ = key.fileobj.accept()
                    self._next += 1
                    self._send(OPEN, self._next, self._listening[key.fileobj])
                    self._add(end, self._next)

    def _add(self, end: socket.socket, number: int) -> None:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(end, number)
        self._connections[number] = connection
        self._selector.register(end, selectors.EVENT_READ, connection)

    def _send(self, kind: int, number: int, value: int = 0, data: bytes = b"") -> None:
        self._out += FRAME.pack(kind, number, value) + data
        self._wait_for_link()

    def _wait_for_link(self) -> None:
        can_write = self._out and (self._takes or self._room)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if can_write else 0)
        self._selector.modify(self._link, events)

    def _serve_link(self, events: int) -> bool:
        """Returns whether the stream goes on."""
        try:
            if events & selectors.EVENT_WRITE:
                written = os.write(self._link, self._out[: AT_ONCE if self._takes else self._room])
                del self._out[:written]
                self._room -= 0 if self._takes else written
                self._wait_for_link()
            if events & selectors.EVENT_READ:
                data = os.read(self._link, AT_ONCE)
                if not data:
                    return False
                self._in += data
                if self._takes:
                    self._send(TAKEN, 0, len(data))
        except BlockingIOError:
            pass
        except OSError:
            return False
        while len(self._in) >= FRAME.size:
            kind, number, value = FRAME.unpack_from(self._in)
            end = FRAME.size + value * (kind == DATA)
            if len(self._in) < end:
                break
            data = bytes(self._in[FRAME.size : end])
            del self._in[:end]
            self._hear(kind, number, value, data)
        return True

    def _hear(self, kind: int, number: int, value: int, data: bytes) -> None:
        if kind == OPEN:
            try:
                self._add(socket.create_connection(("127.0.0.1", value)), number)
            except OSError:
                self._send(RESET, number)
            return
        if kind == TAKEN:
            self._room += value
            self._wait_for_link()
            return
        connection = self._connections.get(number)
        if connection is None:  # reset meanwhile
            return
        if kind == DATA:
            connection.waiting += data
        elif kind == PASSED_ON:
            connection.credit += value
        elif kind == END:
            connection.got_end = True
        else:
            self._drop(connection)
            return
        self._serve(connection, 0)

    def _serve(self, connection: _Connection, events: int) -> None:
        """Do what can be done for a connection, and say what to wait for."""
        try:
            if events & selectors.EVENT_READ and connection.credit and not connection.sent_end:
                if data := connection.end.recv(min(AT_ONCE, connection.credit)):
                    connection.credit -= len(data)
                    self._send(DATA, connection.number, len(data), data)
                else:
                    connection.sent_end = True
                    self._send(END, connection.number)
            if connection.waiting:
                passed_on = connection.end.send(connection.waiting)
                del connection.waiting[:passed_on]
                self._send(PASSED_ON, connection.number, passed_on)
        except BlockingIOError:
            pass
        except OSError:
            self._send(RESET, connection.number)
            self._drop(connection)
            return
        if connection.got_end and not connection.waiting:
            if connection.sent_end:
                self._drop(connection)
                return
            if not connection.told_end:
                connection.told_end = True
                with contextlib.suppress(OSError):  # then the next recv() knows more
                    connection.end.shutdown(socket.SHUT_WR)
        wanted = selectors.EVENT_READ if connection.credit and not connection.sent_end else 0
        wanted |= selectors.EVENT_WRITE if connection.waiting else 0
        known = connection.end in self._selector.get_map()
        if wanted and known:
            self._selector.modify(connection.end, wanted, connection)
        elif wanted:
            self._selector.register(connection.end, wanted, connection)
        elif known:
            self._selector.unregister(connection.end)

    def _drop(self, connection: _Connection) -> None:
        if connection.end in self._selector.get_map():
            self._selector.unregister(connection.end)
        connection.end.close()
        del self._connections[connection.number]


if __name__ == "__main__":
    Relay(sys.stdin.fileno()).run()
