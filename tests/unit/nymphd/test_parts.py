# SPDX-License-Identifier: MIT
"""Parts of nymphd that no running one shows: sensors this machine has not, certificates, damaged packages."""

import asyncio
import datetime
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
import uvicorn
from cryptography import x509
from cysystemd.daemon import Notification
from nymphd.credentials import Doorkeeper, StartError, prepare_certificate, read_token, write_private
from nymphd.listener import Listener
from nymphd.settings import Settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uvicorn.protocols.utils import ClientDisconnected

from nymphd import credentials, network, sensors, server, watch

CI = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "BUILD_ID", "JENKINS_URL", "GITLAB_CI", "ORT_DISABLE_TELEMETRY")
WRAPS_AT = 262_143_328_850


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_rapl_energy_is_counted_once_and_wraps(tmp_path: Path) -> None:
    """Packages are counted, the parts of one are not again; and counters wrap around."""
    zones = "class/powercap"
    package = {"energy_uj": f"{WRAPS_AT - 1_000_000}\n", "max_energy_range_uj": f"{WRAPS_AT}\n"}
    other = {"energy_uj": "5\n", "max_energy_range_uj": f"{WRAPS_AT}\n"}
    files = {f"{zones}/intel-rapl:0/{name}": content for name, content in package.items()}
    files |= {f"{zones}/intel-rapl:1/{name}": content for name, content in other.items()}
    files |= {f"{zones}/intel-rapl:0:0/energy_uj": "1\n"}
    meter = sensors.EnergyMeter(tree(tmp_path, files))
    assert meter.reason is None
    before = meter.read()
    tree(tmp_path, {f"{zones}/intel-rapl:0/energy_uj": "2599999\n", f"{zones}/intel-rapl:1/energy_uj": "5\n"})
    assert meter.used_wh(before) == pytest.approx(3.6e6 / 3.6e9)
    (tmp_path / zones / "intel-rapl:0/energy_uj").unlink()
    assert meter.used_wh(before) is None
    assert "can't be read any more" in str(meter.reason)


def test_hwmon_energy_is_counted(tmp_path: Path) -> None:
    meter = sensors.EnergyMeter(tree(tmp_path, {"class/hwmon/hwmon3/energy1_input": "7200000\n"}))
    before = meter.read()
    tree(tmp_path, {"class/hwmon/hwmon3/energy1_input": "10800000\n"})
    assert meter.used_wh(before) == pytest.approx(0.001)


def test_missing_energy_has_a_reason(tmp_path: Path) -> None:
    meter = sensors.EnergyMeter(tmp_path)
    assert (meter.read(), meter.used_wh(None), meter.reason) == (
        None,
        None,
        "no RAPL zone and no energy sensor",
    )
    meter = sensors.EnergyMeter(tree(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": "much\n"}))
    assert meter.read() is None and "no number" in str(meter.reason)


def test_board_id_comes_from_setting_device_tree_or_dmi(tmp_path: Path) -> None:
    assert sensors.board_id("mine", tmp_path) == ("mine", "setting")
    assert sensors.board_id(None, tmp_path) == (None, None)
    dmi = {"sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_name": "Standard PC\n"}
    assert sensors.board_id(None, tree(tmp_path, dmi)) == ("QEMU Standard PC", "dmi")
    tree(tmp_path, {"sys/class/dmi/id/board_name": "NYMPH\n"})
    assert sensors.board_id(None, tmp_path) == ("NYMPH", "dmi")
    tree(tmp_path, {"proc/device-tree/model": "Radxa ROCK 5B\0"})
    assert sensors.board_id(None, tmp_path) == ("Radxa ROCK 5B", "device-tree")


def test_certificate_is_made_once_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certificate, key = tmp_path / "certificate.pem", tmp_path / "private-key.pem"
    prepare_certificate(*files)
    made = certificate.read_bytes()
    prepare_certificate(*files)
    assert certificate.read_bytes() == made
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    names = x509.load_pem_x509_certificate(made).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "localhost" in names.value.get_values_for_type(x509.DNSName)
    key.unlink()
    prepare_certificate(*files)
    assert certificate.read_bytes() != made
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    made = certificate.read_bytes()

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Later":
            return cls.fromtimestamp((ends - datetime.timedelta(days=29)).timestamp(), tz)

    monkeypatch.setattr(datetime, "datetime", Later)
    prepare_certificate(*files)
    assert certificate.read_bytes() != made
    certificate.write_text("nonsense")
    with pytest.raises(StartError, match="remove it for a new one"):
        prepare_certificate(*files)


def test_certificate_is_renewed_while_nymphd_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at every hour: new connections get the new one, old ones go on; what fails is tried again."""
    settings = Settings(state_dir=tmp_path)
    file = tmp_path / "certificate.pem"
    monkeypatch.setattr(credentials, "_CERTIFICATE_DAYS", 29)  # so that it is time at once
    monkeypatch.setattr(server, "_RENEW_EVERY_S", 0.05)

    class Running:
        listener: Listener

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.WriteTransport)
            self.transport.write(data)

    async def use() -> None:
        identity = credentials.Identity(settings)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            running = Running()
            running.listener = Listener(listening, lambda ended: Echo(), identity.context(), 10, 10)
            running.listener.start()
            port = listening.getsockname()[1]

            async def connect(certificate: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                tls = ssl.create_default_context(cadata=certificate)
                return await asyncio.open_connection("localhost", port, ssl=tls, family=socket.AF_INET)

            first = file.read_text()
            reader, writer = await connect(first)
            file.write_text("junk")
            renewing = asyncio.create_task(server._renew(identity, running))  # type: ignore[arg-type]
            await asyncio.sleep(0.5)
            assert {entry["event"] for entry in said} == {"the certificate can't be renewed"}
            await connect(first)
            monkeypatch.setattr(credentials, "_CERTIFICATE_DAYS", 365)
            file.write_text(first)
            while file.read_text() == first:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
            second = file.read_text()
            await connect(second)
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(first)
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            renewing.cancel()
            running.listener.close()
            assert [entry["event"] for entry in said].count("the certificate is renewed") == 1

    with structlog.testing.capture_logs() as said:
        asyncio.run(asyncio.wait_for(use(), 60))


def test_token_is_made_once(tmp_path: Path) -> None:
    token = read_token(tmp_path / "token")
    assert len(token) == 43 and read_token(tmp_path / "token") == token
    keeper = Doorkeeper(token)
    assert (
        keeper.knows_token(token) and not keeper.knows_token(token[:-1]) and not keeper.knows_token("\udcff")
    )


def test_oldest_session_ends_beyond_256(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Doorkeeper("x" * 43)
    first, last = keeper.open_session(), ""
    assert keeper.knows_session(first) and not keeper.knows_session("x" * 43)
    for _ in range(256):
        last = keeper.open_session()
    assert not keeper.knows_session(first) and keeper.knows_session(last)
    keeper.end_session(last)
    assert not keeper.knows_session(last)


def test_private_file_is_replaced_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "file", b"one")
    (tmp_path / "file.new").write_text("left of a crash")
    write_private(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(StartError, match="can't write"):
        write_private(tmp_path / "nowhere/file", b"")


def test_traceback_has_no_locals() -> None:
    """There are tokens among them."""
    code = """
from nymphd.log import log, set_up
set_up("info")
token = "a secret"
try:
    1 / 0
except ArithmeticError:
    log.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in done.stderr and "a secret" not in done.stderr


def test_onnx_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """If it did, it would keep an identifier of the device at home, and complain where there is none; but not
    in CI, which it knows by its environment."""
    command = [sys.executable, "-c", "import nymphd.inference"]
    outside = {name: value for name, value in os.environ.items() if name not in CI}
    told = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path))
    subprocess.run(command, env=outside | told, check=True)
    assert list(tmp_path.iterdir()) == []
    nowhere = dict.fromkeys(told, "/proc")
    done = subprocess.run(command, env=outside | nowhere, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # It would, if nobody told it not to: else this test says nothing.
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=outside | told, check=True)
    assert list(tmp_path.iterdir()) != []


def test_busy_loop_feeds_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn of the loop takes a sixth of the time systemd gives: no six go by without a word."""
    turn_s, told, turns = 0.1, [], 0

    async def nothing(scope: object, receive: object, send: object) -> None:
        pass

    async def be_busy() -> None:
        nonlocal turns
        while turns < 30:
            time.sleep(turn_s)
            turns += 1
            await asyncio.sleep(0)

    async def serve() -> None:
        config = uvicorn.Config(nothing, lifespan="off", log_config=None)
        config.load()
        settings, context = Settings(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = server.Server(config, listening, settings, context)
            task = asyncio.create_task(serving.serve([listening]))
            await be_busy()
            serving.should_exit = True
            await task

    monkeypatch.setattr(server, "_tell_systemd", lambda what: told.append((what, turns)))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(6 * turn_s * 1e6)))
    asyncio.run(serve())
    others = [what for what, _ in told if what is not Notification.WATCHDOG]
    assert others == [Notification.READY, Notification.STOPPING]
    fed = [turn for what, turn in told if what is Notification.WATCHDOG]
    assert all(after - before < 6 for before, after in zip([0, *fed], [*fed, turns], strict=True)), told


def test_websocket_that_answers_no_ping_is_closed(tmp_path: Path) -> None:
    """A sender during that learns that the client has gone, and not that it made an error."""
    ends: list[Exception] = []
    files = tmp_path / "certificate.pem", tmp_path / "private-key.pem"
    prepare_certificate(*files)

    def connect(port: int) -> socket.socket:
        plain = socket.create_connection(("localhost", port))
        client = ssl.create_default_context(cafile=files[0]).wrap_socket(plain, server_hostname="localhost")
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        return client

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "."})
                await asyncio.sleep(0.01)
        except Exception as error:
            ends.append(error)

    async def use() -> None:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws=server._WebSocketProtocol, ws_ping_interval=0.1,
            ws_ping_timeout=0.1, ssl_certfile=files[0], ssl_keyfile=files[1], timeout_graceful_shutdown=1,
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as listening:
            running = uvicorn.Server(config)
            serving = asyncio.create_task(running.serve([listening]))
            while not running.started:
                await asyncio.sleep(0.01)
            with await asyncio.to_thread(connect, listening.getsockname()[1]):
                while not ends:
                    await asyncio.sleep(0.01)
            running.should_exit = True
            await serving

    asyncio.run(asyncio.wait_for(use(), 60))
    assert isinstance(ends[0], ClientDisconnected)


def test_fdinfo_of_a_ring_is_parsed() -> None:
    told = (
        "pos:\t0\nflags:\t02100002\nnymph-ring:\t7\nnymph-owner:\t412\nnymph-engine:\tdma0chan0\nnymph-entries:\t256\n"
        "nymph-active:\t3\nnymph-unread:\t1\nnymph-errors:\t2\nnymph-dma-bytes:\t3165878\nnymph-pinned-bytes:\t0\n"
        "nymph-buffer-bytes:\t0\nnymph-card-bytes:\t0\nnymph-imported-bytes:\t0\n"
        "nymph-latency-ns:\tp50=81919 p95=98303 p99=131071 p99.9=140000 max=150000 count=12\n"
    )
    ring = watch._ring(told)
    assert (ring["name"], ring["owner"], ring["mine"], ring["engine"]) == ("ring7", 412, False, "dma0chan0")
    assert (ring["active"], ring["errors"], ring["dma_bytes"]) == (3, 2, 3165878)
    assert (ring["latency_p50_ns"], ring["latency_p999_ns"]) == (81919, 140000)


def test_requirements_are_locked_with_hashes() -> None:
    """nymphd/requirements.txt has all of it, in versions that both pyproject.toml take, each with hashes."""
    root = Path(__file__).parents[3]
    blocks = re.split(r"\n(?=[a-z0-9])", (root / "nymphd/requirements.txt").read_text())[1:]
    locked = {}
    for block in blocks:
        found = re.match(r"([a-z0-9._-]+)==([^ ;]+)", block)
        assert found and "--hash=sha256:" in block, block[:80]
        locked[found[1]] = found[2]
    for folder in (root, root / "nymphd"):
        for text in tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]:
            wanted = Requirement(text)
            if wanted.name != "pynymph":
                assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text


def test_the_former_name_is_the_package_nymphd() -> None:
    script = "import nymphd.settings, pynymph.service.settings as former, pynymph.service as package\n"
    script += "assert (former, package) == (nymphd.settings, nymphd)"
    command = [sys.executable, "-W", "default", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "DeprecationWarning: pynymph.service is now the package nymphd" in done.stderr


class Slow:
    """A network whose runs end when they may, as those of a machine that is too busy."""

    inputs = outputs = ()
    may_end: ClassVar = threading.Event()

    def __init__(self, model: network.Model) -> None:
        pass

    def probe(self) -> None:
        pass

    def run(self, items: list[Any], wide: bool, options: Any) -> list[tuple[Any, int]]:
        assert self.may_end.wait(60)
        return [(item, 1) for item in items]


def test_model_is_used_again_when_a_late_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.KINDS, "onnx", Slow)
    monkeypatch.setattr(network, "_STOP_S", 0.05)

    async def late(runner: network.Runner) -> None:
        while runner._threads is None:
            await asyncio.sleep(0.01)
        with pytest.raises(network.InferenceTimeout, match="ran for"):
            await runner.run("late", "latency", 0.05)

    async def use() -> None:
        runner = network.Runner(network.Model("slow", "onnx", None, {}, {}), sensors.EnergyMeter())
        await runner.start()
        for _ in range(2):
            await late(runner)
        while runner.failure is None:
            await asyncio.sleep(0.01)
        assert "2 runs do not end though told to; it is used again" in runner.failure
        with pytest.raises(network.ModelBusy, match="do not end"):
            await runner.run("refused", "latency", 60)
        Slow.may_end.set()
        while runner.failure is not None:
            await asyncio.sleep(0.01)
        assert (await runner.run("good", "latency", 60)).output == "good"
        runner.close()

    asyncio.run(asyncio.wait_for(use(), 60))
