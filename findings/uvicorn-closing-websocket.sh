#!/bin/sh
# SPDX-License-Identifier: MIT
# uvicorn 0.54 with websockets 17.4 (ws="websockets-sansio") does not shut down cleanly while a WebSocket over TLS is
# closing: its client has sent a close frame, which websockets has answered, and does not end TLS.
# WebSocketsSansIOProtocol.shutdown() then calls send_close() once more, as it looks at what the application closed
# alone, and websockets raises InvalidState; Server.serve() ends with that error, and neither waits for the other
# connections nor ends the lifespan. A subclass whose shutdown() closes the transport on InvalidState mends it.
# Without the close frame, shutdown() sends one with 1012 and ends well. Without TLS, the connection is gone at once.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvicorn==0.54.0 websockets==17.4
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
	-keyout "$folder/key.pem" -out "$folder/certificate.pem" 2> /dev/null
"$folder/venv/bin/python" - "$folder" << 'END'
import asyncio
import logging
import socket
import ssl
import sys
import time
from importlib.metadata import version

import uvicorn
from websockets.exceptions import InvalidState

print("uvicorn", version("uvicorn"), "websockets", version("websockets"))

CERTIFICATE, KEY = f"{sys.argv[1]}/certificate.pem", f"{sys.argv[1]}/key.pem"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = b"\x88\x82" + bytes(4) + b"\x03\xe8"  # masked with zeros; 1000


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("the lifespan ends")
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


def connect(port, tls, is_closing):
    """A client with a WebSocket, which does not answer the end of TLS."""
    plain = socket.create_connection(("localhost", port))
    client = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
    client.sendall(HANDSHAKE)
    assert client.recv(1000).startswith(b"HTTP/1.1 101")
    if is_closing:
        client.sendall(CLOSE)
        time.sleep(0.5)
    return client


async def stop_with_client(has_tls, is_closing):
    """How serve() ended."""
    listening = socket.create_server(("127.0.0.1", 0))
    files = {"ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY} if has_tls else {}
    config = uvicorn.Config(app, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=2, **files)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    tls = ssl.create_default_context(cafile=CERTIFICATE) if has_tls else None
    with await asyncio.to_thread(connect, listening.getsockname()[1], tls, is_closing):
        server.should_exit = True
        (error,) = await asyncio.gather(serving, return_exceptions=True)
    return error


logging.disable()
for has_tls, is_closing in ((False, True), (True, False), (True, True)):
    error = asyncio.run(stop_with_client(has_tls, is_closing))
    print("with TLS," if has_tls else "without TLS,", "closing:" if is_closing else "open:", repr(error))
    assert isinstance(error, InvalidState) == (has_tls and is_closing)
END
