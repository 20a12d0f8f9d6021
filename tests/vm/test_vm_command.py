# SPDX-License-Identifier: MIT
"""nymph-vm, as it is typed: exit statuses, copies, and what is left behind."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nymph_vm.host import runtime_folder

NYMPH_VM = str(Path(sys.executable).with_name("nymph-vm"))
PANIC = "echo c > /proc/sysrq-trigger; sleep 1000"


# Emulated, and native.
on_each_ground = pytest.mark.parametrize("arch", ["amd64", pytest.param("um", marks=pytest.mark.native)])
NO_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


def nymph_vm(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([NYMPH_VM, *arguments], cwd=cwd, capture_output=True, text=True)


@on_each_ground
def test_run_returns_status_output_and_copies(tmp_path: Path, arch: str) -> None:
    """The command's status, its output, copies both ways; and a kernel that stays silent is no complaint."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("from the host")
    links = {"folder": "in", "link": "in/file", "in/inner": "file", "outside": "/etc/hostname"}
    for link, to in links.items():
        (tmp_path / link).symlink_to(to)
    script = "cat in/file; echo oops >&2; mkdir made; ln -s made dist; echo from the guest > dist/file; "
    script += "[ ! -L folder -a ! -L link -a -L in/inner -a -s outside ] && "
    script += "cmp in/file link && cmp link folder/inner && exit 7"
    copies = [part for path in ("in", "folder/", "link", "outside") for part in ("--copy", path)]
    done = nymph_vm("run", "--arch", arch, *copies, "--", "sh", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "from the host")
    assert "oops" in done.stderr
    assert (tmp_path / "dist/file").read_text() == "from the guest\n"


@pytest.mark.native
def test_no_privilege_is_needed_and_nothing_stays() -> None:
    machines, memory = set(runtime_folder().iterdir()), set(os.listdir("/dev/shm"))
    command = [NYMPH_VM, "run", "--arch", "um", "--", "sh", "-c", "echo $NYMPH_ACCEL; exit 7"]
    done = subprocess.run([*NO_PRIVILEGES, *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "native\n"), done.stderr
    assert set(runtime_folder().iterdir()) <= machines
    assert set(os.listdir("/dev/shm")) <= memory


@on_each_ground
def test_run_reports_a_complaint(arch: str) -> None:
    done = nymph_vm("run", "--arch", arch, "--", "sh", "-c", "echo '<4>planted complaint' > /dev/kmsg")
    assert done.returncode == 120
    assert re.search(r"the guest's kernel complains: .*planted complaint", done.stderr)
    assert "the command itself exited with status 0" in done.stderr


@on_each_ground
def test_run_reports_a_panic(arch: str) -> None:
    done = nymph_vm("run", "--arch", arch, "--", "sh", "-c", PANIC)
    assert done.returncode == 121
    assert "the guest's kernel panicked" in done.stderr
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


@on_each_ground
def test_run_reports_the_end_of_the_machine(arch: str) -> None:
    done = nymph_vm("run", "--arch", arch, "--", "sh", "-c", "echo o > /proc/sysrq-trigger; sleep 1000")
    assert done.returncode == 123
    assert "QEMU or user-mode Linux ended" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--copy", "no/such", "--", "true"), "--copy no/such: there is no such file or folder"),
        (("run", "--kernel", "linux-0.1", "--", "true"), "linux-0.1"),
        (("run", "--memory", "much", "--", "true"), "'much' is no amount of memory"),
        (("run", "--board", "--endpoints", "2", "--", "true"), "leave out --endpoints"),
        (("run", "--arch", "um", "--board", "--", "true"), "leave out --board"),
        (("run", "--arch", "um", "--kernel", "debian-6.1", "--", "true"), "there are debug-7, plain-7, up-7"),
        (("run", "--pci", "a.py:A", "--", "true"), "say --arch um"),
        (("run", "--arch", "um", "--pci", "no.py:A", "--", "true"), "'no.py:A' names no PCI function"),
        (("run", "--arch", "um", "--pci", "json:loads", "--", "true"), "is no class derived from"),
        (("run", "--fault", "bug", "--", "true"), "no fault 'bug': there are flip, "),
        (("up", "--fault", "flip:rate=2"), "a fault's rate is above 0 and at most 1, and not 2.0"),
        (("up", "--fault", "flip:seed=x"), "the seed of a fault is a number, and not 'x'"),
        (("faults", "--none", "flip"), "--none and faults: say one of them"),
        (("faults", "--name", "nobody"), "there is no machine 'nobody'"),
        (("unplug", "--name", "nobody"), "there is no machine 'nobody'"),
        (("up", "--endpoints", "9"), "9 is not in the range 0<=x<=8"),
        (("run", "--name", "../x", "--", "true"), "'../x' cannot be a machine's name"),
        (("ssh", "--name", "nobody"), "there is no machine 'nobody'"),
        (("down", "--name", "nobody"), "there is no machine 'nobody'"),
        (("logs", "--name", "nobody"), "there is no machine 'nobody'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str) -> None:
    done = nymph_vm(*arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@on_each_ground
def test_machines_stay_up_side_by_side(arch: str) -> None:
    """Two side by side, by name: up, status, ssh, logs, down."""
    names = (f"test-one-{os.getpid()}", f"test-two-{os.getpid()}")
    try:
        for name in names:
            up = nymph_vm("up", "--arch", arch, "--name", name, "--memory", "1G")
            assert up.returncode == 0, up.stderr
            script = f"echo {name} > file; exit 5"
            assert nymph_vm("ssh", "--name", name, "--", "sh", "-c", script).returncode == 5
            for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
                killed = nymph_vm("ssh", "--name", name, "--", "sh", "-c", f"kill -{int(number)} $$")
                assert killed.returncode == 128 + number
            assert nymph_vm("ssh", "--name", name, "--", "sh", "-c", "exit 255").returncode == 255
        assert nymph_vm("up", "--arch", arch, "--name", names[0]).returncode == 125
        status = nymph_vm("status").stdout
        for name in names:
            assert re.search(rf"{name} .*running", status)
            assert nymph_vm("ssh", "--name", name, "--", "cat", "file").stdout == f"{name}\n"
            assert "nymph_endpoint" in nymph_vm("logs", "--name", name).stdout
        assert nymph_vm("ssh", "--name", names[0], "--", "sh", "-c", PANIC).returncode == 121
        assert re.search(rf"{names[0]} .*panicked", nymph_vm("status").stdout)
        assert "sysrq triggered crash" in nymph_vm("logs", "--name", names[0]).stdout
        assert nymph_vm("ssh", "--name", names[1], "--", "true").returncode == 0
    finally:
        for name in names:
            nymph_vm("down", "--name", name)
    status = nymph_vm("status").stdout
    for name in names:
        assert name not in status
        assert not (runtime_folder() / name).exists()


VERIFIED = """
import pynymph
with pynymph.Ring() as ring:
    try:
        ring.copy(src=b"x" * 9999, dst=bytearray(9999), verify=True)
    except pynymph.VerifyError:
        print("flipped", end=" ")
print(*pynymph.query().engines.values())
"""


@on_each_ground
def test_commands_set_faults_and_replug_endpoints(arch: str) -> None:
    name = f"test-faults-{os.getpid()}"

    def asked(*arguments: str) -> str:
        done = nymph_vm(arguments[0], "--name", name, *arguments[1:])
        return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"

    try:
        assert nymph_vm("up", "--arch", arch, "--name", name, "--fault", "flip:seed=7").returncode == 0
        assert asked("ssh", "--", "python3", "-c", VERIFIED).startswith("flipped cpu dma")
        assert re.search(r"flip:seed=7 .* one bit .* [1-9]", asked("faults"))
        assert asked("faults", "--none") == "nothing is to go wrong\n"
        assert asked("ssh", "--", "python3", "-c", VERIFIED).startswith("cpu dma")
        assert re.search(r"slow:rate=0.5,count=3 .* 0 ", asked("faults", "slow:rate=0.5,count=3"))
        assert asked("unplug") == ""
        assert asked("ssh", "--", "python3", "-c", VERIFIED) == "cpu\n"
        assert "125: nymph-vm: no endpoint ep0 is plugged in" in asked("unplug")
        assert "125: nymph-vm: the endpoint ep0 does not answer" in asked("faults")
        assert asked("plug") == ""
        assert "125: nymph-vm: no slot of an endpoint ep0 is empty" in asked("plug")
        assert "ep9" in asked("plug", "--endpoint", "ep9")
    finally:
        nymph_vm("down", "--name", name)


def processes_of(folder: Path) -> list[int]:
    """The processes with that folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@on_each_ground
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_after_the_parent_ends(signum: signal.Signals, arch: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    name = f"test-{signum.name.lower()}-{os.getpid()}"
    folder = runtime_folder() / name
    script = "echo started; sleep 1000"
    command = [NYMPH_VM, "run", "--arch", arch, "--name", name, "--memory", "1G", "--", "sh", "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "started\n"
        left = {os.pidfd_open(pid): pid for pid in processes_of(folder)}
        assert len(left) >= 3  # the machine, SSH, and the one that removes the folder
        if signum == signal.SIGINT:
            os.killpg(parent.pid, signum)  # as a terminal does
        else:
            parent.kill()
        assert parent.wait() == (130 if signum == signal.SIGINT else -signum)
    ends = select.poll()
    for file in left:
        ends.register(file, select.POLLIN)
    while left:
        ended = ends.poll(30_000)
        assert ended, f"still there: {list(left.values())}"
        for file, _ in ended:
            ends.unregister(file)
            os.close(file)
            del left[file]
    assert not folder.exists()
