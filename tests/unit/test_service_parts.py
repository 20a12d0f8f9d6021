# SPDX-License-Identifier: MIT
"""Parts of nymphd that no running one shows: sensors this machine has not, certificates, damaged packages."""

import asyncio
import datetime
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509
from cysystemd.daemon import Notification

from pynymph.service import sensors, server
from pynymph.service.credentials import Doorkeeper, StartError, prepare_certificate, read_token, write_private

WRAPS_AT = 262_143_328_850


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_energy_of_rapl(tmp_path: Path) -> None:
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


def test_energy_of_hwmon(tmp_path: Path) -> None:
    meter = sensors.EnergyMeter(tree(tmp_path, {"class/hwmon/hwmon3/energy1_input": "7200000\n"}))
    before = meter.read()
    tree(tmp_path, {"class/hwmon/hwmon3/energy1_input": "10800000\n"})
    assert meter.used_wh(before) == pytest.approx(0.001)


def test_no_energy_has_a_reason(tmp_path: Path) -> None:
    meter = sensors.EnergyMeter(tmp_path)
    assert (meter.read(), meter.used_wh(None), meter.reason) == (
        None,
        None,
        "no RAPL zone and no energy sensor",
    )
    meter = sensors.EnergyMeter(tree(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": "much\n"}))
    assert meter.read() is None and "no number" in str(meter.reason)


def test_the_boards_name(tmp_path: Path) -> None:
    assert sensors.board_id("mine", tmp_path) == ("mine", "setting")
    assert sensors.board_id(None, tmp_path) == (None, None)
    dmi = {"sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_name": "Standard PC\n"}
    assert sensors.board_id(None, tree(tmp_path, dmi)) == ("QEMU Standard PC", "dmi")
    tree(tmp_path, {"sys/class/dmi/id/board_name": "NYMPH\n"})
    assert sensors.board_id(None, tmp_path) == ("NYMPH", "dmi")
    tree(tmp_path, {"proc/device-tree/model": "Radxa ROCK 5B\0"})
    assert sensors.board_id(None, tmp_path) == ("Radxa ROCK 5B", "device-tree")


def test_a_certificate_is_made_once_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_token_is_made_once(tmp_path: Path) -> None:
    token = read_token(tmp_path / "token")
    assert len(token) == 43 and read_token(tmp_path / "token") == token
    keeper = Doorkeeper(token)
    assert (
        keeper.knows_token(token) and not keeper.knows_token(token[:-1]) and not keeper.knows_token("\udcff")
    )


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Doorkeeper("x" * 43)
    first, last = keeper.open_session(), ""
    assert keeper.knows_session(first) and not keeper.knows_session("x" * 43)
    for _ in range(256):
        last = keeper.open_session()
    assert not keeper.knows_session(first) and keeper.knows_session(last)
    keeper.end_session(last)
    assert not keeper.knows_session(last)


def test_a_private_file_is_there_whole_or_not(tmp_path: Path) -> None:
    write_private(tmp_path / "file", b"one")
    (tmp_path / "file.new").write_text("left of a crash")
    write_private(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(StartError, match="can't write"):
        write_private(tmp_path / "nowhere/file", b"")


def test_a_traceback_has_no_locals() -> None:
    """There are tokens among them."""
    code = """
from pynymph.service.log import log, set_up
set_up("info")
token = "a secret"
try:
    1 / 0
except ArithmeticError:
    log.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in done.stderr and "a secret" not in done.stderr


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """If it did, it would keep an identifier of the device at home, and complain where there is none."""
    command = [sys.executable, "-c", "import pynymph.service.inference"]
    told = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(tmp_path))
    subprocess.run(command, env=os.environ | told, check=True)
    assert list(tmp_path.iterdir()) == []
    nowhere = dict.fromkeys(told, "/proc")
    done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_busy_loop_feeds_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
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
        serving = server.Server(uvicorn.Config(nothing, lifespan="off", log_config=None))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            task = asyncio.create_task(serving.serve([listening]))
            await be_busy()
            serving.should_exit = True
            await task

    monkeypatch.setattr(server, "_tell_systemd", lambda what: told.append((what, turns)))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(6 * turn_s * 1e6)))
    asyncio.run(serve())
    assert (told[0][0], told[-1][0]) == (Notification.READY, Notification.STOPPING)
    fed = [turn for what, turn in told if what is Notification.WATCHDOG]
    assert all(after - before < 6 for before, after in zip([0, *fed], [*fed, turns], strict=True)), told
