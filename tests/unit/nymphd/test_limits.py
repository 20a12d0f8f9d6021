# SPDX-License-Identifier: MIT
"""Who nymphd lets in, what it puts up with, and how it ends: over real sockets, on the model."""

import base64
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from nymphd.credentials import prepare_certificate
from nymphd_process import Service
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

import nymphd

CLIENTS = 1000


def connect(url: str, **options: Any) -> ClientConnection:
    """A busy machine may take its time."""
    return connect_websocket(url, open_timeout=60, **options)


def upgraded(service: Service, headers: dict[str, str]) -> str:
    """The status line for who wants a WebSocket: its client library stumbles over some refusals."""
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    wanted = {"Host": f"localhost:{service.port}", "Upgrade": "websocket", "Connection": "Upgrade", **key}
    lines = [f"{name}: {value}\r\n" for name, value in (wanted | headers).items()]
    with service.connect() as client, client.makefile("r", newline="\r\n") as answer:
        client.sendall(f"GET /events HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        return answer.readline()


def with_header(service: Service, **headers: str) -> httpx.Response:
    with service.client(headers=service.bearer | headers) as client:
        return client.get("/status")


# --- who may ask ---


@pytest.mark.parametrize(
    "path", ["/status", "/metrics", "/models", "/fabric/verify", "/openapi.json", "/docs"]
)
def test_every_path_needs_the_token(service: Service, path: str) -> None:
    wrong = (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x"},
        {"Authorization": f"Basic {service.token}"},
    )
    for headers in (*wrong, {"Cookie": f"__Host-nymphd={service.token}"}):
        with service.client(headers=headers) as client:
            answer = client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_health_and_login_need_no_token(service: Service) -> None:
    with service.client(headers={}) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/").headers["location"] == "/login"
        assert "<form" in client.get("/login").text


def test_session_cookie_opens_every_page(service: Service) -> None:
    with service.client(headers={}) as client:
        assert client.post("/session", data={"token": "no"}).status_code == 401
        answer = client.post("/session", data={"token": service.token}, headers={"Origin": service.url})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert service.token not in cookie
        for attribute in ("Secure", "HttpOnly", "SameSite=strict", "Path=/"):
            assert attribute in cookie
        assert client.get("/status").status_code == 200
        assert client.get("/").status_code == 200
        stolen = dict(client.cookies)
        url = f"wss://localhost:{service.port}/events"
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in stolen.items())}
        with connect_websocket(url, ssl=service.tls, additional_headers=cookie, open_timeout=60) as listening:
            assert client.delete("/session").status_code == 204
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    listening.recv(timeout=30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    with service.client(headers={"Cookie": "; ".join(f"{k}={v}" for k, v in stolen.items())}) as client:
        assert client.get("/status").status_code == 401


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost",
        "https://localhost:1",
        "https://localhost.evil.example",
    ],
)
def test_other_origins_are_refused(service: Service, origin: str) -> None:
    answer = with_header(service, Origin=origin)
    assert (answer.status_code, "origins" in answer.json()["error"]) == (403, True)
    assert upgraded(service, service.bearer | {"Origin": origin}).startswith("HTTP/1.1 403")


def test_websocket_needs_the_token(service: Service) -> None:
    url = f"wss://localhost:{service.port}/events"
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": "__Host-nymphd=x"}):
        assert upgraded(service, headers).startswith("HTTP/1.1 403")
    with connect(url, ssl=service.tls, additional_headers=service.bearer | {"Origin": service.url}):
        pass


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "[::2]:8443", "localhost:1:2"]
)
def test_other_host_names_are_refused(service: Service, host: str) -> None:
    answer = with_header(service, Host=host)
    assert (answer.status_code, "Host" in answer.text) == (400, True)
    for good in ("localhost", "LOCALHOST:1", "127.0.0.1:8443", "[::1]:8443"):
        assert with_header(service, Host=good).status_code == 200


def test_wrong_tokens_are_limited(start_service: Callable[..., Service]) -> None:
    running = start_service(login_limit="3/hour")
    with running.client(headers={"Authorization": "Bearer wrong"}) as client:
        assert [client.get("/status").status_code for _ in range(5)] == [401, 401, 401, 429, 429]
        assert client.post("/session", data={"token": "wrong"}).status_code == 429
        refused = client.get("/status")
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200
    with running.client() as client:  # whoever has the token is not kept out by that
        assert client.get("/status").status_code == 200


def test_requests_are_limited_per_client(start_service: Callable[..., Service]) -> None:
    """Of those who have the token, and of strangers: these do not use up what those may do."""
    running = start_service(rate_limit="20/hour")
    with running.client(headers={}) as stranger:
        statuses = Counter(stranger.get("/healthz").status_code for _ in range(30))
        assert (statuses[200], statuses[429]) == (20, 10)
    with running.client() as client:
        statuses = Counter(client.get("/healthz").status_code for _ in range(30))
        assert statuses[200] >= 1 and statuses[429] >= 10


def test_large_bodies_of_strangers_are_refused(service: Service) -> None:
    with service.client(headers={}) as client:
        answer = client.post("/session", data={"token": "x" * 5000})
    assert (answer.status_code, "4096" in answer.json()["error"]) == (413, True)


def test_old_tls_is_refused(service: Service) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(service.folder / "certificate.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.deprecated_call():
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", service.port)) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_secret_files_are_private(service: Service) -> None:
    for name in ("token", "private-key.pem"):
        assert stat.S_IMODE((service.folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(service.folder.stat().st_mode) & 0o077 == 0


def test_service_listens_only_on_loopback(service: Service) -> None:
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    port = f"{service.port:04X}"
    addresses = {line.split()[1] for line in listening.splitlines() if f":{port} " in line and " 0A " in line}
    assert addresses == {f"0100007F:{port}"}


# --- limits ---


def test_inputs_above_the_limit_are_refused(start_service: Callable[..., Service]) -> None:
    running = start_service(max_input_bytes=10_000)
    with running.client() as client:
        for size, status in ((10_000, 200), (10_001, 413), (20_000, 413), (30_000_000, 413)):
            body = {"model": "magika", "input": base64.b64encode(bytes(size)).decode()}
            answer = client.post("/infer", json=body)
            assert answer.status_code == status, size
            if status == 413:
                assert "10000" in answer.json()["error"] or "larger" in answer.json()["error"]
        # One whose length nobody said.
        answer = client.post("/infer", content=(b"x" * 4000 for _ in range(20)))
        assert answer.status_code == 413
        assert client.get("/status").status_code == 200


def test_inferences_above_the_limit_are_refused(start_service: Callable[..., Service]) -> None:
    running = start_service(max_inferences=2)
    body = {"model": "magika", "input": base64.b64encode(bytes(range(256)) * 8).decode()}
    with running.client() as client, ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda _: client.post("/infer", json=body), range(48)))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 2 and statuses[429] >= 1 and statuses.total() == statuses[200] + statuses[429]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)


def test_thousand_clients_get_right_answers(service: Service) -> None:
    """Each with a connection of its own, all open at once; and every answer is right."""
    request = (
        f"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n\r\n".encode()
    )

    def ask(client: ssl.SSLSocket) -> dict[str, Any]:
        client.sendall(request)
        with client.makefile("rb") as read:
            assert read.readline().startswith(b"HTTP/1.1 200 ")
            length = 0
            while line := read.readline().strip():
                if line.startswith(b"content-length:"):
                    length = int(line.split()[1])
            return json.loads(read.read(length))  # type: ignore[no-any-return]

    def come(_: int) -> ssl.SSLSocket:
        client = service.connect()
        ask(client)
        return client

    with ThreadPoolExecutor(50) as threads:
        clients = list(threads.map(come, range(CLIENTS)))
        answers = list(threads.map(ask, clients))
    assert {each["engine"] for each in answers} == {"model"}
    assert len(answers) == CLIENTS
    for client in clients:
        client.close()


def closes_within(client: socket.socket, seconds: float) -> bool:
    client.settimeout(seconds)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_slow_clients_and_half_open_sockets_are_closed(start_service: Callable[..., Service]) -> None:
    """300 of each kind, while others are served."""
    running = start_service(header_timeout_s=1, body_timeout_s=1)
    half_open = [socket.create_connection(("localhost", running.port)) for _ in range(300)]
    headers_only = b"GET /status HTTP/1.1\r\nHost: localhost\r\n"
    start = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {running.token}\r\n"
    body_start = f"{start}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode()

    def come(sent: bytes) -> list[ssl.SSLSocket]:
        """One, or none: strangers may have to make room for others."""
        try:
            client = running.connect()
            client.sendall(sent)
        except OSError:
            return []
        return [client]

    with ThreadPoolExecutor(50) as threads:
        silent, headers, trickling, body = (
            [client for found in threads.map(come, [sent] * count) for client in found]
            for sent, count in ((b"", 300), (headers_only, 300), (b"", 20), (body_start, 300))
        )
    assert len(body) > 200, "these have the token, but a second is little for TLS on a busy machine"
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.2):
            for client in trickling:
                try:
                    client.sendall(b"G")
                except OSError:
                    continue

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        with running.client() as client:
            assert client.get("/status").status_code == 200
        for kind in (half_open, silent, headers, trickling, body):
            assert all(closes_within(each, 30) for each in kind)
    finally:
        stop.set()
        thread.join()
    for each in (*half_open, *silent, *headers, *trickling, *body):
        each.close()
    with running.client() as client:
        assert client.get("/status").status_code == 200
    assert running.stop() == 0


def test_websocket_client_that_does_not_read_is_closed(start_service: Callable[..., Service]) -> None:
    running = start_service(body_timeout_s=1)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("localhost", running.port))
    url = f"wss://localhost:{running.port}/events"
    stuck = connect(
        url, sock=plain, ssl=running.tls, additional_headers=running.bearer, max_queue=1, close_timeout=1
    )
    with stuck, running.client() as client:
        deadline = time.monotonic() + 120
        ended = False
        while not ended and time.monotonic() < deadline:
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda _: client.get("/fabric/verify", params={"bytes": 1}), range(64)))
            ended = any(each["event"] == "request" and each["path"] == "/events" for each in running.log())
        assert ended
        assert client.get("/status").status_code == 200


def test_garbage_is_answered_or_closed(service: Service) -> None:
    garbage = (
        b"\r\n\r\n",
        b"\x16\x03\x01" + bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        b"GET /%ff%00%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nCookie: \xff;=;__Host-nymphd\r\n\r\n",
    )
    for sent in garbage:
        with service.connect() as client:
            client.settimeout(30)
            try:
                client.sendall(sent)
                answer = client.recv(65536)
            except (TimeoutError, OSError):
                answer = b""
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 303")), (
                sent[:60],
                answer[:200],
            )
    with service.client() as client:
        assert client.get("/status").status_code == 200


# --- how it starts and ends ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_service_after_its_requests(
    start_service: Callable[..., Service], number: int
) -> None:
    """What is under way comes to its end first, and who listens is told."""
    running = start_service()
    data = base64.b64encode(os.urandom(1 << 20)).decode()
    with (
        running.client() as client,
        ThreadPoolExecutor(4) as threads,
        connect(
            f"wss://localhost:{running.port}/events", ssl=running.tls, additional_headers=running.bearer
        ) as listener,
    ):
        body = {"model": "magika", "input": data}
        asked = [threads.submit(client.post, "/infer", json=body) for _ in range(4)]
        while json.loads(listener.recv(timeout=30))["type"] != "infer":
            pass
        assert running.stop(number) == 0
        # Those that had come by then; the others find nobody to connect to.
        statuses = [each.result().status_code for each in asked if each.exception() is None]
        assert statuses and set(statuses) == {200}
        with pytest.raises(ConnectionClosed):
            while True:
                listener.recv(timeout=10)
    assert [entry["event"] for entry in running.log()][-1] == "stopped"


def test_systemd_is_notified(start_service: Callable[..., Service], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(30)
        running = start_service({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"})
        assert notified.recv(100) == b"READY=1"
        assert notified.recv(100) == b"WATCHDOG=1"
        assert notified.recv(100) == b"WATCHDOG=1"
        assert running.stop() == 0
        rest = [notified.recv(100)]
        while rest[-1] == b"WATCHDOG=1":
            rest.append(notified.recv(100))
        assert rest[-1] == b"STOPPING=1"


def test_request_ids_appear_in_answers_and_log(service: Service) -> None:
    answer = with_header(service, **{"X-Request-ID": "mine-1.2_3"})
    assert answer.headers["x-request-id"] == "mine-1.2_3"
    answer = with_header(service, **{"X-Request-ID": 'x" }'})
    assert answer.headers["x-request-id"] != 'x" }'
    found = [entry for entry in service.log() if entry.get("request_id") == "mine-1.2_3"]
    assert [(entry["path"], entry["status"]) for entry in found] == [("/status", 200)]


def run(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nymphd", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)


def test_wrong_settings_prevent_the_start_with_a_reason(service: Service, tmp_path: Path) -> None:
    here, junk, shared = f"--state-dir={tmp_path / 'state'}", tmp_path / "junk", tmp_path / "shared"
    junk.write_text("no key")
    junk.chmod(0o600)
    shared.mkdir()
    shared.chmod(0o750)
    cases: list[tuple[list[str], int, str]] = [
        (["serve", here, f"--port={service.port}"], 1, "can't listen on 127.0.0.1, port"),
        (["serve", here, "--device=/dev/nothing"], 1, "there is no /dev/nothing; load the module"),
        (["serve", "--state-dir=/proc/nymphd"], 1, "can't make the folder /proc/nymphd"),
        (
            ["serve", here, "--certificate=/etc/hostname", "--private-key=/etc/hostname"],
            1,
            "others may read or write the private key /etc/hostname: chmod 600",
        ),
        (
            ["serve", here, "--certificate=/etc/hostname", f"--private-key={junk}"],
            1,
            "can't use the certificate",
        ),
        (["serve", f"--state-dir={shared}"], 1, f"read or write the state folder {shared}: chmod 700"),
        (["serve", here, "--certificate=/etc/hostname"], 2, "belong together"),
        (["serve", here, "--port=70000"], 2, "port"),
        (["serve", here, "--rate-limit=often"], 2, "is no rate"),
        (["serve", here, "--surplus"], 2, "surplus"),
    ]
    for options, status, why in cases:
        done = run(*options)
        assert (done.returncode, why in done.stderr, "Traceback" in done.stderr) == (status, True, False), (
            done.stderr
        )
    done = run("serve", here, NYMPHD_RING_SIZE="5000")
    assert (done.returncode, "ring_size" in done.stderr) == (2, True)
    done = run("serve", here, NYMPHD_PROT="1")
    assert (done.returncode, done.stderr) == (
        2,
        "nymphd: there is no setting NYMPHD_PROT; did you mean NYMPHD_PORT?\n",
    )
    assert run("--version").stdout == f"nymphd {nymphd.__version__}\n"


def test_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 43)
    token.chmod(0o640)
    done = run("serve", f"--state-dir={tmp_path}", "--port=0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "others may read" in done.stderr
    token.chmod(0o600)
    token.write_text("short")
    assert "32 ASCII characters" in run("serve", f"--state-dir={tmp_path}", "--port=0").stderr


def test_given_certificate_is_used(start_service: Callable[..., Service], tmp_path: Path) -> None:
    files = {"certificate": tmp_path / "given.pem", "private_key": tmp_path / "given.key"}
    prepare_certificate(*files.values())
    running = start_service(**files)
    with running.client() as client:
        assert client.get("/status").status_code == 200
    assert not list(running.folder.glob("*.pem"))
