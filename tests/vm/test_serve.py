# SPDX-License-Identifier: MIT
"""`make serve`: a service on a port of this machine until Ctrl-C."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
from nymph_vm.host import CHECKOUT, runtime_folder

NYMPH_VM = str(Path(sys.executable).with_name("nymph-vm"))
NAME = f"test-serve-{os.getpid()}"


def test_make_serve_runs_nymph_vm_serve() -> None:
    command = ["make", "--dry-run", "serve"]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == ".venv/bin/nymph-vm serve"


def test_service_runs_until_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    with socket.socket() as taken:  # so it has to take another
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [NYMPH_VM, "serve", "--name", NAME, "--port", str(port)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as serving:
            try:
                assert serving.stdout
                url, token = (serving.stdout.readline().split()[1] for _ in range(2))
                assert int(re.fullmatch(r"https://localhost:(\d+)/", url)[1]) != port  # type: ignore[index]
                unknown = ssl.create_default_context()
                unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
                with httpx.Client(base_url=url, verify=unknown, timeout=120) as client:
                    assert client.get("/status").status_code == 401
                    client.headers["Authorization"] = f"Bearer {token}"
                    assert client.get("/fabric/verify").json()["verified"]
                    assert "nymphd" in client.get("/").text
            finally:
                os.killpg(serving.pid, signal.SIGINT)  # as a terminal does
            assert serving.wait(60) == 0
    assert not (runtime_folder() / NAME).exists()
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1]))) != 0
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _mentions(path, f"/{NAME}/".encode())]
    assert left == []


def _mentions(path: Path, what: bytes) -> bool:
    try:
        return what in path.read_bytes()
    except OSError:  # it has ended
        return False
