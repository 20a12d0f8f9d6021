# SPDX-License-Identifier: MIT
"""What strangers, tenants and operators did to nymphd, and what it makes of it now.

Those that use `attacked` and `ending` also run in a VM: tests/service/test_nymphd_attacked.py.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import doc_blocks
import httpx
import pytest
from nymphd.credentials import prepare_certificate
from nymphd_process import Reached, Service
from test_answers import events, infer

SLACK_MIB = 64  # that is nothing: allocators, and what is made at first use
LOOPED_S = 0.25  # so long nothing may keep the loop, on a machine that does nothing else
JSON = {"Content-Type": "application/json"}
WAITING = 'nymphd_connections{kind="waiting"}'
TURNED_AWAY = 'nymphd_connections_turned_away_total{kind="waiting"}'
STRANGERS = """
import resource, socket, sys

address, count, first = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), bytes.fromhex(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)
held = [socket.create_connection(address, timeout=60) for _ in range(count)]
for each in held:
    try:
        each.sendall(first)
    except OSError:  # the peer has closed it
        pass
print("there they are", flush=True)
sys.stdin.read()
"""
RESETS = """
import socket, struct, sys

address, count = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
with socket.create_server((address[0], 0)) as free:
    mine = free.getsockname()
for _ in range(count):
    with socket.socket() as reset:
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.bind(mine)
        reset.connect(address)
print("they were there", flush=True)
"""


def strangers(service: Reached, count: int, first: bytes = b"") -> contextlib.AbstractContextManager[None]:
    """So many connections to it, beside it, that send some bytes and say no more."""
    host, port = service.address
    return service.beside(STRANGERS, host, str(port), str(count), first.hex())


def figure(client: httpx.Client, name: str) -> float:
    """One of /metrics; 0 if it is not there."""
    return float(client.get("/metrics").text.partition(f"\n{name} ")[2].partition("\n")[0] or 0)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all that ends well."""
    # No limit of requests: its tests ask without a pause, and a fast machine gets to 2000 in a second.
    limits = {"login_limit": "100000/minute", "rate_limit": "1000000/second"}
    running = Service(tmp_path_factory.mktemp("attacked") / "state", **limits)
    yield running
    assert running.stop() == 0
    assert [entry for entry in running.log() if entry["level"] == "error"] == []


# --- connections ---


def test_answers_on_a_kept_connection_are_not_delayed(attacked: Reached) -> None:
    """Without TCP_NODELAY it takes 40 ms, as its end waits for the client's acknowledgement."""
    with attacked.client() as client:
        client.get("/status")
        kept = []
        for _ in range(30):
            began = time.perf_counter()
            client.get("/healthz")
            kept.append(time.perf_counter() - began)
    new = []
    for _ in range(10):
        began = time.perf_counter()
        with attacked.client() as client:
            client.get("/healthz")
        new.append(time.perf_counter() - began)
    assert statistics.median(kept) < statistics.median(new), (kept, new)


def test_silent_connections_cost_little(attacked: Reached) -> None:
    """4,000 that say nothing: few are kept, memory does not grow, and others get in at once."""
    before = attacked.rss_mib()
    with strangers(attacked, 4000):
        with attacked.client() as client:
            assert client.get("/status").status_code == 200
            assert client.get("/healthz", headers={"Authorization": ""}).status_code == 200
            wait_for(lambda: figure(client, TURNED_AWAY) > 2000)
            assert figure(client, WAITING) <= 512
        assert attacked.rss_mib() - before < SLACK_MIB
    wait_for(lambda: any(entry["event"] == "strangers are turned away" for entry in attacked.log()))


def test_reset_connections_free_their_place(attacked: Reached) -> None:
    """Those that were reset, and came again from the same port before nymphd looked, take no room."""
    host, port = attacked.address
    attacked.kill(signal.SIGSTOP)
    try:
        with attacked.beside(RESETS, host, str(port), "1500"):
            pass
    finally:
        attacked.kill(signal.SIGCONT)
    # As many as may wait, of a network.
    with strangers(attacked, 500), attacked.client() as client:
        wait_for(lambda: figure(client, WAITING) == 500)


def test_strangers_with_tls_make_room(attacked: Reached) -> None:
    """300 that begin with TLS and say no more, or log in never: who has the token, and probes, get in."""
    hello = ssl.MemoryBIO()
    saying = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        saying.do_handshake()
    first = hello.read()
    before = attacked.rss_mib()
    with strangers(attacked, 300, first):
        for _ in range(5):
            with attacked.client() as client:
                assert client.get("/status").status_code == 200
            with attacked.client(headers={}) as probe:
                assert probe.get("/livez").status_code == 200
        with attacked.client() as client:
            assert figure(client, 'nymphd_connections{kind="stranger"}') <= 128
        assert attacked.rss_mib() - before < SLACK_MIB


def test_no_tls_ticket_follows_the_handshake(attacked: Reached) -> None:
    """No ticket comes after the handshake: Python's clients that read in one thread and write in another lost
    their first request to it, and waited until nymphd closed the connection."""
    with attacked.connect() as client:
        assert client.version() == "TLSv1.3"
        client.setblocking(False)
        time.sleep(0.5)
        with pytest.raises(BlockingIOError):
            socket.socket.recv(client, 1, socket.MSG_PEEK)  # of the bytes below TLS


def test_memory_is_freed_after_many_clients(attacked: Reached) -> None:
    """Of 300 clients that kept connections, half of them with WebSockets: flat after they have gone."""
    with attacked.client() as client:
        client.get("/status")
    request = f"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {attacked.token}\r\n\r\n"
    stack = contextlib.ExitStack()  # which can be used again

    def come(number: int) -> Any:
        if number % 2:
            return stack.enter_context(events(attacked))
        client = stack.enter_context(attacked.connect())
        client.sendall(request.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        return client

    def round_of_clients() -> float:
        with stack, ThreadPoolExecutor(16) as threads:
            list(threads.map(come, range(300)))
        time.sleep(8)  # until memory is given back, which is done every 5 s
        return attacked.rss_mib()

    first = round_of_clients()
    again = round_of_clients()
    assert again <= first * 1.2, (first, again)


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[Service]:
    """One that the test stops."""
    running = Service(tmp_path / "state")
    yield running
    running.close()


def test_stop_does_not_wait_for_a_closing_websocket(ending: Reached) -> None:
    """Its client has said that it ends, and does not hang up: nymphd ends well all the same."""
    handshake = (
        "GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {ending.token}\r\n\r\n"
    )
    end = b"\x88\x82" + bytes(4) + b"\x03\xe8"  # a close frame: masked, with nothing; 1000
    with ending.connect() as client:
        client.sendall(handshake.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 101")
        client.sendall(end)
        time.sleep(1)
        assert ending.stop() == 0


def test_status_polling_does_not_delay_probes(attacked: Reached) -> None:
    """While 200 clients ask for /status all the time, a probe waits for a few of them only."""
    stop = threading.Event()
    looked = [0] * 8

    def look(number: int) -> None:
        request = f"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {attacked.token}\r\n\r\n"
        clients = []
        for _ in range(25):
            clients.append(attacked.connect())
            clients[-1].sendall(request.encode())
        while not stop.is_set():
            for client in clients:
                client.recv(65536)
                client.sendall(request.encode())
                looked[number] += 1
        for client in clients:
            client.close()

    with ThreadPoolExecutor(8) as threads:
        looking = [threads.submit(look, number) for number in range(8)]
        wait_for(lambda: sum(looked) > 200)
        began, count = time.monotonic(), sum(looked)
        with attacked.client() as client:
            waited = []
            for _ in range(20):
                at = time.monotonic()
                assert client.get("/healthz").status_code == 200
                waited.append(time.monotonic() - at)
            assert infer(client, b"import os\n" * 50).json()["output"]["label"] == "python"
        rate = (sum(looked) - count) / (time.monotonic() - began)
        stop.set()
    for each in looking:
        each.result()
    # All others first, as it was, would be 200 requests.
    assert statistics.median(waited) * rate < 100, (waited, rate)


# --- requests ---


def longest_wait(service: Reached, while_doing: Callable[[], Any]) -> tuple[float, Any]:
    """For /healthz, in seconds."""
    waits = [0.0]
    with ThreadPoolExecutor(1) as threads, service.client() as client:
        client.get("/healthz")
        doing = threads.submit(while_doing)
        while not doing.done():
            began = time.monotonic()
            assert client.get("/healthz").status_code == 200
            waits.append(time.monotonic() - began)
    return max(waits), doing.result()


def idle_wait(service: Reached) -> float:
    """What /healthz takes on this machine now, at worst, while nymphd has nothing else to do."""
    return longest_wait(service, lambda: time.sleep(2))[0]


LARGEST = 8 << 20
BODIES: dict[str, tuple[bytes, int]] = {
    "a million unknown keys": (b"{" + b",".join(b'"%d":0' % i for i in range(900_000)) + b"}", 413),
    "many unknown keys": (b"{" + b",".join(b'"%d":0' % i for i in range(4000)) + b"}", 422),
    "deep": (b'{"input":' + b"[" * 16000 + b"]" * 16000 + b"}", 422),
    "a long list": (b'{"input":[' + b"0," * 131_000 + b"0]}", 422),
    "the largest input": (
        b'{"model":"magika","input":"' + b"QUJD" * (LARGEST // 3) + b'"}',
        200,
    ),
    "no base64": (b'{"model":"magika","input":"' + b"!" * (LARGEST * 4 // 3) + b'"}', 422),
    "no JSON": (b"[" * 11_000_000, 413),
    "no UTF-8": (b'{"model":"\xff"}', 422),
}


@pytest.mark.parametrize("what", BODIES)
def test_hostile_bodies_do_not_block_the_loop(attacked: Reached, what: str) -> None:
    """Nor does its answer have more than a few words."""
    body, status = BODIES[what]

    def send() -> httpx.Response:
        with attacked.client() as client:
            return client.post("/infer", content=body, headers=JSON)

    idle = idle_wait(attacked)
    waited, answer = longest_wait(attacked, send)
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.content) < 2000
    assert waited < LOOPED_S * attacked.slowness + 4 * idle, (waited, idle)


@pytest.mark.parametrize(
    ("request_text", "status", "why"),
    [
        (
            "POST /infer HTTP/1.1\r\nHost: localhost\r\nAUTH\r\nContent-Length: 2\r\n\r\n{}",
            415,
            "no Content-Type",
        ),
        (
            "POST /infer HTTP/1.1\r\nHost: localhost\r\nAUTH\r\nContent-Type: application/json\r\n"
            "Content-Length: 2\r\n\r\n{}",
            422,
            "model: Field required",
        ),
        ("POST /status HTTP/1.1\r\nHost: localhost\r\nAUTH\r\nContent-Length: 0\r\n\r\n", 405, "allow: GET"),
        ("DELETE /infer HTTP/1.1\r\nHost: localhost\r\nAUTH\r\n\r\n", 405, "allow: POST"),
        (
            "POST /infer HTTP/1.1\r\nHost: localhost\r\nAUTH\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "",
        ),
        ("HEAD /status HTTP/1.1\r\nHost: localhost\r\nAUTH\r\n\r\n", 200, "content-length: "),
        ("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200, "content-length: "),
        (
            "GET /status HTTP/1.1\r\nHost: localhost\r\nAUTH\r\n" + "X-A: " + "y" * 40_000 + "\r\n\r\n",
            400,
            "Invalid",
        ),
        ("GET /fabric/verify?bytes=0 HTTP/1.1\r\nHost: localhost\r\nAUTH\r\n\r\n", 422, "bytes"),
    ],
)
def test_malformed_requests_are_refused_with_a_reason(
    attacked: Reached, request_text: str, status: int, why: str
) -> None:
    text = request_text.replace("AUTH", f"Authorization: Bearer {attacked.token}\r\nConnection: close")
    with attacked.connect() as client, client.makefile("rb") as read:
        client.sendall(text.encode())
        answer = read.read().decode()
    assert answer.startswith(f"HTTP/1.1 {status} "), answer[:300]
    assert why in answer and "pydantic" not in answer
    if request_text.startswith("HEAD"):
        assert answer.endswith("\r\n\r\n"), "and no body"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
    ],
)
def test_cookie_works_only_from_its_own_origin(
    attacked: Reached, headers: dict[str, str], status: int
) -> None:
    """Another port of localhost is the same site to a browser, which sends the cookie along."""
    with attacked.client(headers={}) as client:
        assert client.post("/session", data={"token": attacked.token}).status_code == 303
        assert client.get("/fabric/verify?bytes=100", headers=headers).status_code == status
        if headers.get("Sec-Fetch-Mode"):
            assert client.get("/", headers=headers).status_code == 200, "a link to the dashboard is one"
        assert client.get("/status", headers={**headers, **attacked.bearer}).status_code == 200


def test_websockets_are_not_counted_as_slow_requests(attacked: Reached) -> None:
    with events(attacked) as socket, attacked.client() as client:
        last = json.loads(socket.recv(timeout=30))["seq"]
        client.get("/fabric/verify")
        for _ in range(5):
            seq = json.loads(socket.recv(timeout=30))["seq"]
            assert seq == last + 1, "none is missing"
            last = seq
    with attacked.client() as client:
        assert 'path="/events"' not in client.get("/metrics").text


# --- what changes while it runs ---


def test_reload_reads_token_certificate_and_models_again(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Token, certificate and models are read again on SIGHUP; what can't be used stays as it was."""
    files = [tmp_path / "given.pem", tmp_path / "given.key"]
    prepare_certificate(*files)
    running = start_service(certificate=files[0], private_key=files[1])

    def reload() -> str:
        before = len(running.log())
        running.process.send_signal(signal.SIGHUP)
        said = ("reloaded", "not all could be reloaded")
        wait_for(lambda: any(entry["event"] in said for entry in running.log()[before:]))
        return next(entry["event"] for entry in running.log()[before:] if entry["event"] in said)

    old = running.bearer
    with running.client() as kept:
        assert kept.get("/status").status_code == 200
        other = "y" * 43
        (running.folder / "token").write_text(other)
        for file in files:
            file.unlink()
        prepare_certificate(*files)
        assert kept.get("/status").status_code == 200, "nothing before it is told to"
        shutil.rmtree(running.folder / "models/magika")
        assert reload() == "reloaded"
        assert kept.get("/status").status_code == 401
        running.token = other
        assert kept.get("/models", headers=running.bearer).json()["models"] == []
        with pytest.raises(httpx.ConnectError), running.client() as client:
            client.get("/status")  # the old certificate is what it trusts
        running.tls = ssl.create_default_context(cafile=files[0])
        with running.client() as client:
            assert client.get("/status").status_code == 200
            assert client.get("/status", headers=old).status_code == 401
            (running.folder / "token").chmod(0o644)
            assert reload() == "not all could be reloaded"
            (running.folder / "token").chmod(0o600)
            files[1].write_text("junk")
            assert reload() == "not all could be reloaded"
            assert client.get("/status").status_code == 200
        with running.client() as client:
            assert client.get("/status").status_code == 200
    assert running.stop() == 0


def test_only_names_of_the_certificate_are_served(attacked: Reached) -> None:
    for host, status in ((attacked.hostname, 200), ("localhost", 200), ("other.example", 400)):
        with attacked.client(headers=attacked.bearer | {"Host": host}) as client:
            assert client.get("/status").status_code == status, host


def test_documented_commands_work(tmp_path: Path) -> None:
    """Its blocks wait until nymphd serves; and no process has the token among its arguments."""
    root = Path(__file__).parents[3]
    found = [block.text for block in doc_blocks.run_by(doc_blocks.SERVICE)]
    assert len(found) == 2
    script = "\n".join(found)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = tmp_path / "state"
    script = script.replace(".venv/bin/nymphd", f"{sys.executable} -m nymphd")
    script = script.replace("~/.local/state/nymphd", str(state)).replace("8443", str(port))
    script = f"trap 'kill $!; wait' EXIT\ncd {root}\n{script}\nps -eo args"
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "NYMPHD_PORT": str(port)}
    environment["NYMPHD_STATE_DIR"] = str(state)
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert '"verified":true' in done.stdout and '"label":"' in done.stdout, done.stdout[-2000:] + done.stderr
    assert '"uptime_s":' in done.stdout
    assert (state / "token").read_text().strip() not in done.stdout
