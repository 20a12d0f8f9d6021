# SPDX-License-Identifier: MIT
"""The server under the application: TLS, time limits of connections, signals, and what systemd is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from cysystemd.daemon import Notification, notify
from uvicorn.protocols.http.h11_impl import H11Protocol

from pynymph.service.app import make_app
from pynymph.service.credentials import Doorkeeper, StartError, make_folder, prepare_certificate, read_token
from pynymph.service.log import log
from pynymph.service.nymphd import Nymphd

if TYPE_CHECKING:
    import h11
    from starlette.types import ASGIApp

    from pynymph.service.settings import Settings

_SHUTDOWN_SECONDS = 5  # of TLS, for peers that do not answer
_LEAVE_SECONDS = 2
_KEEP_ALIVE_SECONDS = 15
_LARGEST_HEADERS = 32 * 1024
_SEND_BUFFER = 128 * 1024  # so much can lie in the kernel for a client that does not read
_LARGEST_EVENT = 4096  # that a WebSocket's client may send


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError."""
    _raise_file_limit()
    make_folder(settings.state_dir)
    doorkeeper = Doorkeeper(read_token(settings.state_dir / "token"))
    certificate, private_key = settings.certificate, settings.private_key
    if certificate is None or private_key is None:
        certificate = settings.state_dir / "certificate.pem"
        private_key = settings.state_dir / "private-key.pem"
        prepare_certificate(certificate, private_key)

    async def run() -> None:
        nymphd = Nymphd(settings, doorkeeper)
        try:
            server = _make_server(make_app(nymphd), settings, str(certificate), str(private_key))
            with _listen(settings.host, settings.port) as socket:
                address, port = socket.getsockname()[:2]
                engine, folder = nymphd.carrier.engine, str(settings.state_dir)
                log.info("serving", host=address, port=port, engine=engine, state_dir=folder)
                watching = asyncio.create_task(nymphd.run())
                try:
                    await server.serve([socket])
                finally:
                    watching.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watching
        finally:
            nymphd.close()
        log.info("stopped")

    with asyncio.Runner(loop_factory=lambda: _make_loop(settings.header_timeout_s)) as runner:
        runner.run(run())
    _leave_threads_behind()


class Server(uvicorn.Server):
    """uvicorn's, which here ends without an error after SIGTERM or SIGINT, and tells systemd how it is."""

    _feeding: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _tell_systemd(Notification.READY)
        self._feeding = asyncio.create_task(_feed_watchdog())  # which ends with the loop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _tell_systemd(Notification.STOPPING)
        log.info("stopping")
        await super().shutdown(sockets)


def _make_server(app: ASGIApp, settings: Settings, certificate: str, private_key: str) -> Server:
    """What serves `app`. Raises StartError if the certificate is of no use."""

    class Protocol(_ImpatientProtocol):
        header_timeout_s = settings.header_timeout_s

    def context(config: uvicorn.Config, default: Any) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_cert_chain(certificate, private_key)
        return made

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="websockets-sansio",
        ws_max_size=_LARGEST_EVENT,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        ssl_context_factory=context,
        h11_max_incomplete_event_size=_LARGEST_HEADERS,
        reset_contextvars=True,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"can't use the certificate {certificate} with {private_key}: {error}") from None
    return Server(config)


def _leave_threads_behind() -> None:
    """End now if some thread still waits for an engine or a network: Python would wait for it."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("a thread is left behind", thread=thread.name)
                logging.shutdown()
                os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """An open socket there. Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server(found[0][4][:2], family=found[0][0], backlog=4096)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return listening
    except OSError as error:
        message = f"can't listen on {host}, port {port}: {error.strerror}; say another one (--host, --port)"
        raise StartError(message) from None


def _make_loop(header_timeout_s: float) -> asyncio.AbstractEventLoop:
    """A loop whose servers give up on peers that do not come to an end with TLS."""

    class Loop(asyncio.SelectorEventLoop):
        async def create_server(self, *args: Any, **kwargs: Any) -> Any:
            kwargs |= {"ssl_handshake_timeout": header_timeout_s, "ssl_shutdown_timeout": _SHUTDOWN_SECONDS}
            return await super().create_server(*args, **kwargs)

    return Loop()


def _raise_file_limit() -> None:
    """As many open files as the process may have: each client is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _tell_systemd(what: Notification) -> None:
    if "NOTIFY_SOCKET" in os.environ:
        notify(what)


async def _feed_watchdog() -> None:
    """Tell systemd, as often as it wants, that the loop turns.

    By the clock: uvicorn's callback_notify waits for ten turns of the loop, which take long when it is busy.
    """
    watchdog_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while watchdog_s:
        _tell_systemd(Notification.WATCHDOG)
        await asyncio.sleep(watchdog_s / 4)


class _ImpatientProtocol(H11Protocol):
    """A connection whose client has so long for the headers of each request, from their first byte on."""

    header_timeout_s: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_headers()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
