# SPDX-License-Identifier: MIT
"""nymph_vm.relay: connections over one stream of bytes, as into a native guest."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from nymph_vm.relay import LINE, WINDOW, Relay

SECONDS = 20


@pytest.fixture
def near() -> Iterator[Relay]:
    """The side that listens; the other is up, too."""
    ends = socket.socketpair()
    relays = [Relay(ends[0].fileno(), most=LINE), Relay(ends[1].fileno())]
    for relay in relays:
        relay.start()
    yield relays[0]
    for relay in relays:
        relay.close()
    for end in ends:
        end.close()


@contextlib.contextmanager
def server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server on the far side, for one connection; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            end, _ = listening.accept()
            with end:
                serve(end)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(SECONDS)
        assert not thread.is_alive()


def connect(relay: Relay, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.forward(port)), timeout=SECONDS)


def read_all(end: socket.socket) -> bytes:
    return b"".join(iter(lambda: end.recv(1 << 16), b""))


def test_all_bytes_arrive_both_ways_and_ends_are_told(near: Relay) -> None:
    sent = os.urandom(3 * WINDOW + 17)

    def serve(end: socket.socket) -> None:
        end.sendall(hashlib.sha256(read_all(end)).digest() + sent)

    with server(serve) as port, connect(near, port) as end:
        end.sendall(sent)
        end.shutdown(socket.SHUT_WR)
        assert read_all(end) == hashlib.sha256(sent).digest() + sent


def test_a_connection_nobody_reads_delays_no_other(near: Relay) -> None:
    stop = threading.Event()
    with server(lambda end: stop.wait(SECONDS)) as deaf, connect(near, deaf) as stuck:
        stuck.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while stuck.send(bytes(1 << 16)):
                pass
        with server(lambda end: end.sendall(end.recv(100))) as port, connect(near, port) as end:
            end.sendall(b"through")
            assert end.recv(100) == b"through"
        stop.set()


def test_a_port_nobody_listens_at_ends_the_connection(near: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with connect(near, port) as end:
        assert end.recv(1) == b""


def test_the_end_of_the_stream_ends_connections() -> None:
    """As when the guest panics: ssh has to notice."""
    ours, its = socket.socketpair()
    relay = Relay(ours.fileno(), most=LINE)
    relay.start()
    with connect(relay, 22) as end:
        its.close()
        with contextlib.suppress(ConnectionResetError):
            assert end.recv(1) == b""
    relay.close()
    ours.close()


def test_a_port_that_is_taken_is_replaced(near: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        preferred = taken.getsockname()[1]
        assert near.forward(22, preferred) != preferred
