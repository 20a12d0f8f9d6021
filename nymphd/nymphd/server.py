# SPDX-License-Identifier: MIT
"""The server under the application: TLS, time limits of connections, signals, and systemd's notifications."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from cysystemd.daemon import Notification, notify
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from nymphd import metrics
from nymphd.app import make_app
from nymphd.credentials import Doorkeeper, Identity, StartError, check_private, make_folder
from nymphd.daemon import Nymphd
from nymphd.gate import Gate
from nymphd.listener import Listener
from nymphd.log import log

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from nymphd.settings import Settings

_LEAVE_SECONDS = 2
_KEEP_ALIVE_SECONDS = 15
_LARGEST_HEADERS = 32 * 1024
_MOST_PIPELINED = 8
_MOST_TOGETHER = 64 * 1024
_SEND_BUFFER = 128 * 1024  # so much can lie in the kernel for a client that does not read
_RENEW_EVERY_S = 3600.0
_TRIM_EVERY_S = 5.0
_MANY_CLIENTS = 64  # that went
_LARGEST_EVENT = 4096  # that a WebSocket's client may send


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError if the service can't start."""
    _raise_file_limit()
    make_folder(settings.state_dir)
    check_private(settings.state_dir, "state folder")
    identity = Identity(settings)
    doorkeeper = Doorkeeper(identity.token())
    context = identity.context()

    async def run() -> None:
        nymphd = Nymphd(settings, doorkeeper)
        try:
            gate = make_app(nymphd, identity.names())
            with _listen(settings.host, settings.port) as socket:
                server = _make_server(gate, settings, socket, context)
                gate.welcome = server.listener.welcome
                server.reload = functools.partial(_reload, nymphd, identity, gate, server)
                metrics.watch(nymphd, server.connections)
                address, port = socket.getsockname()[:2]
                engine, folder = nymphd.carrier.engine, str(settings.state_dir)
                log.info("serving", host=address, port=port, engine=engine, state_dir=folder)
                tasks = [asyncio.create_task(each) for each in (nymphd.run(), _renew(identity, server))]
                try:
                    await server.serve([socket])
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            nymphd.close()
        log.info("stopped")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    _leave_threads_behind()


async def _reload(nymphd: Nymphd, identity: Identity, gate: Gate, server: Server) -> None:
    """Read token, certificate and models again. A file that can't be used is logged and not applied."""
    _tell_systemd(Notification.RELOADING)
    try:
        nymphd.doorkeeper.change_token(identity.token())
        server.listener.context = identity.context()
        gate.names = identity.names()
        await nymphd.models.look()
        log.info("reloaded")
    except StartError as error:
        log.error("not all could be reloaded", reason=str(error))
    finally:
        _tell_systemd(Notification.READY)


async def _renew(identity: Identity, server: Server) -> None:
    """Renew nymphd's own certificate in time, and use it."""
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        try:
            if identity.is_renewed():
                server.listener.context = identity.context()
                log.info("the certificate is renewed")
        except StartError as error:
            log.error("the certificate can't be renewed", reason=str(error))


class Server(uvicorn.Server):
    """Run uvicorn's server: end without an error after SIGTERM or SIGINT, and notify systemd."""

    def __init__(
        self, config: uvicorn.Config, listening: socket.socket, settings: Settings, context: ssl.SSLContext
    ) -> None:
        """Needs a running loop."""
        super().__init__(config)
        self.reload: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # which end with the loop
        self.listener = Listener(
            listening, self._make_protocol, context, settings.max_strangers, settings.header_timeout_s
        )

    def _make_protocol(self, ended: Callable[[], None]) -> asyncio.Protocol:
        made: _ImpatientProtocol = self.config.http_protocol_class(  # type: ignore[assignment, call-arg]
            config=self.config, server_state=self.server_state, app_state={}
        )
        made.ended = ended
        return made

    def connections(self) -> dict[str, int]:
        """Return the number of open connections of each kind."""
        http = sum(isinstance(each, HttpToolsProtocol) for each in self.server_state.connections)
        websocket = len(self.server_state.connections) - http
        counts = self.listener.counts()
        return {"http": http - counts["stranger"], "websocket": websocket, **counts}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def _reload(self) -> None:
        if self.reload is not None:
            self._start(self.reload())

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.listener.start()
        self.servers = [self.listener]  # type: ignore[list-item]  # all that uvicorn does with it, it can
        self.started = True
        _tell_systemd(Notification.READY)
        self._start(_feed_watchdog())
        self._start(_give_memory_back(self))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _tell_systemd(Notification.STOPPING)
        log.info("stopping")
        await super().shutdown(sockets)


def _make_server(
    app: ASGIApp, settings: Settings, listening: socket.socket, context: ssl.SSLContext
) -> Server:
    """Make the server of `app`. The caller has a running event loop."""

    class Protocol(_ImpatientProtocol):
        header_timeout_s = settings.header_timeout_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws=_WebSocketProtocol,
        ws_max_size=_LARGEST_EVENT,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections + settings.max_strangers,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
        reset_contextvars=True,
    )
    config.load()
    return Server(config, listening, settings, context)


async def _give_memory_back(server: Server) -> None:
    """Return free memory of the C library to the kernel soon after many clients have gone."""
    trim = ctypes.CDLL(None).malloc_trim
    most = 0
    while True:
        await asyncio.sleep(_TRIM_EVERY_S)
        there = len(server.server_state.connections)
        most = max(most, there)
        if most - there >= _MANY_CLIENTS:
            most = there
            await asyncio.to_thread(trim, 0)


def _leave_threads_behind() -> None:
    """End the process now if a thread waits for an engine or a network: Python would wait for it."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("a thread is left behind", thread=thread.name)
                logging.shutdown()
                os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server(found[0][4][:2], family=found[0][0], backlog=4096)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return listening
    except OSError as error:
        message = f"can't listen on {host}, port {port}: {error.strerror}; say another one (--host, --port)"
        raise StartError(message) from None


def _raise_file_limit() -> None:
    """Raise the limit of open files to its maximum, because each client takes one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _tell_systemd(what: Notification) -> None:
    if "NOTIFY_SOCKET" in os.environ:
        notify(what)


async def _feed_watchdog() -> None:
    """Notify systemd's watchdog in time that the loop turns.

    The clock decides: uvicorn's callback_notify waits for ten turns of the loop, which take long under load.
    """
    watchdog_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while watchdog_s:
        _tell_systemd(Notification.WATCHDOG)
        await asyncio.sleep(watchdog_s / 4)


class _Together:
    """Send all writes of a turn of the loop together: an answer is one record of TLS and one system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _MOST_TOGETHER:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts, self._size = [], 0


class _ImpatientProtocol(HttpToolsProtocol):
    """Limit time and size of the headers of a request, and the number of requests sent before an answer."""

    header_timeout_s: float
    ended: Callable[[], None]
    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Together(transport, self.loop))  # type: ignore[arg-type]  # but for its name
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_headers()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def _count(self, nbytes: int) -> None:
        """Count bytes of headers. The parser turns an error here into its own: the client gets 400."""
        self._header_bytes += nbytes
        if self._header_bytes > _LARGEST_HEADERS:
            raise ValueError("too many headers")

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self.ended()

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Accept that a WebSocket is already closing when nymphd stops or sends.

    uvicorn 0.54 reports an error of the server in the first case. In the second case, after a ping without
    an answer, it reports one of the application. Such a client is dead, and does not answer the end of TLS.
    """

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except InvalidState:
            self.transport.close()
