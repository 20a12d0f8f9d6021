# SPDX-License-Identifier: MIT
"""nymphd as systemd runs it: at boot, with the device and little else, and up again after a fall."""

import re
import ssl
import threading
import time

import httpx
import pytest
from nymphd_served import Served

EXPOSURE = 1.5  # of 10, as systemd-analyze has it
OPEN = "import os; os.open('/dev/pcie_nymph', os.O_RDWR)"
LISTENING = """
for name in "tcp", "tcp6":
    for line in list(open(f"/proc/net/{name}"))[1:]:
        local, state, user = (line.split()[i] for i in (1, 3, 7))
        if state == "0A" and user != "0":
            address, port = local.split(":")
            print(".".join(map(str, reversed(bytes.fromhex(address)))), int(port, 16))
"""


def client(served: Served) -> httpx.Client:
    trusted = ssl.create_default_context(cadata=served.service.certificate)
    return httpx.Client(
        base_url=served.service.url, headers=served.service.bearer, verify=trusted, timeout=120
    )


def shown(served: Served, what: str) -> str:
    return served.machine.run(["systemctl", "show", "--value", "-p", what, "nymphd"]).stdout.strip()


def journal(served: Served) -> str:
    return served.machine.run(["journalctl", "-o", "cat", "-u", "nymphd"]).stdout


def wait_until_up_again(served: Served, restarts: int, seconds: float = 400) -> None:
    """Wait until systemd has restarted nymphd so many times, and it is ready."""
    until = time.monotonic() + seconds
    while (int(shown(served, "NRestarts")), shown(served, "ActiveState")) != (restarts, "active"):
        assert time.monotonic() < until, journal(served)
        time.sleep(0.5)


def test_modules_device_and_service_start_at_boot(served: Served) -> None:
    """Modules, device and service came up by themselves, in this order, and nothing failed."""
    run = served.machine.run
    assert run(["systemctl", "is-system-running", "--wait"]).stdout == "running\n"
    assert run(["stat", "-c", "%U %G %a", "/dev/pcie_nymph"]).stdout == "root nymph 660\n"
    loaded = run(["lsmod"]).stdout
    assert re.search(r"^pcie_nymph ", loaded, re.MULTILINE)
    assert re.search(r"^nymph_endpoint ", loaded, re.MULTILINE)
    wanted = run(["systemctl", "show", "--value", "-p", "Wants", "dev-pcie_nymph.device"]).stdout
    assert "nymphd.service" in wanted
    log = run(["dmesg", "-l", "emerg,alert,crit,err,warn"]).stdout
    ours = [line for line in log.splitlines() if "nymph" in line and "out-of-tree" not in line]
    assert not ours


def test_service_uses_the_driver(served: Served) -> None:
    with client(served) as asking:
        status = asking.get("/status").json()
        assert status["driver"]["device"] == "/dev/pcie_nymph"
        assert {"cpu", "dma0chan0"} <= {engine["name"] for engine in status["engines"]}
        verified = asking.get("/fabric/verify").json()
        assert verified["verified"], verified
        assert all(engine["verified"] for engine in verified["engines"])


def test_only_the_group_nymph_opens_the_device(served: Served) -> None:
    assert served.machine.run(["getent", "group", "nymph"]).stdout.split(":")[3] == "nymph-user\n"
    served.machine.run(["python3", "-c", OPEN], user="nymph-user")
    refused = served.machine.run(["python3", "-c", OPEN], user="other-user", check=False)
    assert "PermissionError: [Errno 13]" in refused.stderr


def test_service_has_no_rights_but_its_own(served: Served) -> None:
    """No root, no capability, group nymph, a filter of system calls, and memory to pin."""
    pid = shown(served, "MainPID")
    lines = served.machine.run(["cat", f"/proc/{pid}/status"]).stdout
    status = dict(re.findall(r"^(\w+):\s+(.*)$", lines, re.MULTILINE))
    nymph = served.machine.run(["getent", "group", "nymph"]).stdout.split(":")[2]
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert nymph in status["Groups"].split()
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    limits = served.machine.run(["cat", f"/proc/{pid}/limits"]).stdout
    assert re.search(r"Max locked memory +268435456 +268435456 ", limits)
    assert re.search(r"Max core file size +0 +0 ", limits)
    inside = ["nsenter", "--target", pid, "--mount", "sh", "-c", "touch /etc/x; touch /usr/x; ls /home /root"]
    refused = served.machine.run(inside, check=False).stderr
    assert refused.count("Read-only file system") == 2


def test_service_reaches_no_other_device(served: Served) -> None:
    """Of devices, it can open its own and the harmless ones: not so root either, in its control group."""
    group = shown(served, "ControlGroup")
    script = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs"
    script += "; for each in pcie_nymph null vda port; do : < /dev/$each; done"
    refused = served.machine.run(["bash", "-c", script], check=False).stderr
    assert re.findall(r"/dev/(\w+): Operation not permitted", refused) == ["vda", "port"]


@pytest.mark.parametrize("user", ["nymph-user", "other-user"])
def test_other_users_cannot_read_its_secrets(served: Served, user: str) -> None:
    pid = shown(served, "MainPID")
    for path in ("/var/lib/nymphd/token", "/var/lib/private/nymphd/private-key.pem", f"/proc/{pid}/environ"):
        refused = served.machine.run(["cat", path], user=user, check=False)
        assert "Permission denied" in refused.stderr, path
    script = "cd /var/lib/nymphd/; stat -c %a . token private-key.pem"
    assert served.machine.run(["sh", "-c", script]).stdout.split() == ["700", "600", "600"]


def test_logs_and_answers_contain_no_secret(served: Served) -> None:
    """Neither the token nor a cookie nor the key, whatever is asked and however it goes wrong."""
    token = served.service.token
    with client(served) as asking:
        answer = asking.post("/session", data={"token": token})
        assert answer.status_code == 303
        cookie = answer.cookies["__Host-nymphd"]
        asking.get("/status", headers={"Authorization": f"Basic {token}"})
        asking.get("/status", headers={"Authorization": f"Bearer {token}x"})
        asking.post("/infer", json={"model": "magika", "input": "?"})
        asking.get(f"/{cookie}", headers={"Authorization": ""})
    pid = shown(served, "MainPID")
    key = served.machine.run(["sed", "-n", "2p", "/var/lib/nymphd/private-key.pem"]).stdout.strip()
    told = journal(served) + served.machine.run(["systemctl", "show", "nymphd"]).stdout
    told += served.machine.run(["cat", f"/proc/{pid}/cmdline", f"/proc/{pid}/environ"]).stdout
    assert '"path": "/session"' in told
    assert [secret for secret in (token, key) if secret in told] == []


def test_systemd_rates_the_unit_as_hardened(served: Served) -> None:
    report = served.machine.run(["systemd-analyze", "security", "--no-pager", "nymphd"]).stdout
    print(report)
    found = re.search(r"Overall exposure level for nymphd.service: ([\d.]+)", report)
    assert found
    assert float(found[1]) <= EXPOSURE


def test_service_listens_only_where_told(served: Served) -> None:
    """It listens where it was told to, and on the loopback alone if it was not told."""

    def listening() -> list[str]:
        return served.machine.run(["python3", "-c", LISTENING]).stdout.splitlines()

    assert listening() == ["10.0.2.15 8443"]
    settings = "/etc/default/nymphd"
    served.machine.run(["sh", "-ec", f"mv {settings} {settings}.away; systemctl restart nymphd"])
    try:
        assert listening() == ["127.0.0.1 8443"]
    finally:
        served.machine.run(["sh", "-ec", f"mv {settings}.away {settings}; systemctl restart nymphd"])
    assert listening() == ["10.0.2.15 8443"]


def test_stop_lets_requests_end(served: Served) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with client(served) as asking:
            answers.append(asking.get("/fabric/verify?bytes=1048576"))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)  # until it is there; if the answer is faster, this proves less, and is no less true
    served.machine.run(["systemctl", "stop", "nymphd"])
    asking.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["verified"], answers[0].text
    assert (shown(served, "Result"), shown(served, "ExecMainStatus")) == ("success", "0")
    served.machine.run(["systemctl", "start", "nymphd"])


def test_service_starts_with_its_device(served: Served) -> None:
    """The module goes, and comes back: nymphd is started by that."""
    run = served.machine.run
    run(["sh", "-ec", "systemctl stop nymphd; rmmod pcie_nymph; udevadm settle"])
    assert shown(served, "ActiveState") == "inactive"
    run(["modprobe", "pcie_nymph"])
    wait_until_up_again(served, restarts=0)
    with client(served) as asking:
        assert asking.get("/status").json()["driver"]["device"] == "/dev/pcie_nymph"


def test_service_without_a_device_reports_the_model(served: Served) -> None:
    run = served.machine.run
    run(["sh", "-ec", "systemctl stop nymphd; rmmod pcie_nymph; udevadm settle; systemctl start nymphd"])
    try:
        with client(served) as asking:
            assert asking.get("/status").json()["engine"] == "model"
            assert asking.get("/fabric/verify").json()["engine"] == "model"
    finally:
        run(["sh", "-ec", "systemctl stop nymphd; modprobe pcie_nymph"])
        wait_until_up_again(served, restarts=0)


def test_killed_service_restarts(served: Served) -> None:
    before = int(shown(served, "NRestarts"))
    served.machine.run(["systemctl", "kill", "--signal=KILL", "nymphd"])
    wait_until_up_again(served, before + 1)
    with client(served) as asking:
        assert asking.get("/fabric/verify").json()["verified"]


def test_watchdog_restarts_a_hung_service(served: Served) -> None:
    """The process stands still, systemd kills it and starts another, which has the same token."""
    before = int(shown(served, "NRestarts"))
    hung = shown(served, "MainPID")
    served.machine.run(["kill", "-STOP", hung])
    wait_until_up_again(served, before + 1)
    assert shown(served, "MainPID") != hung
    assert "Watchdog timeout" in journal(served)
    with client(served) as asking:
        assert asking.get("/fabric/verify").json()["verified"]


def test_reload_replaces_the_token(served: Served) -> None:
    """A new token is good at once, the old one no more, and the process is the same."""
    process, old = [shown(served, name) for name in ("MainPID", "NRestarts")], served.service.bearer
    token = "y" * 43
    script = f"umask 077; cd /var/lib/nymphd; echo {token} > new; chown --reference=token new; mv new token"
    kept = served.machine.run(["cat", "/var/lib/nymphd/token"]).stdout.strip()
    with client(served) as asking:
        try:
            served.machine.run(["sh", "-ec", f"{script}; systemctl reload nymphd"])
            until = time.monotonic() + 120
            while asking.get("/status", headers={"Authorization": f"Bearer {token}"}).status_code != 200:
                assert time.monotonic() < until, journal(served)
                time.sleep(0.5)
            assert asking.get("/status", headers=old).status_code == 401
        finally:
            served.machine.run(["sh", "-ec", f"{script.replace(token, kept)}; systemctl reload nymphd"])
        until = time.monotonic() + 120
        while asking.get("/status").status_code != 200:
            assert time.monotonic() < until, journal(served)
            time.sleep(0.5)
    assert [shown(served, name) for name in ("MainPID", "NRestarts")] == process
    assert shown(served, "MemoryMax") == str(4 << 30)
