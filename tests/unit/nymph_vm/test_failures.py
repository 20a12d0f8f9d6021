# SPDX-License-Identifier: MIT
"""What cannot be had here: no QEMU, a KVM where guests hang, a module the kernel refuses, no network."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from nymph_vm import accel, apt, cli, kernels, project, root
from nymph_vm.arch import ARM64
from nymph_vm.host import HarnessError, cache_folder, cached
from nymph_vm.machine import Machine
from nymph_vm.state import State, claim
from pytest_subprocess import FakeProcess


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    # Not what is installed here, but what these tests are about.
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/bin/{name}")


@pytest.fixture
def kernel(tmp_path: Path) -> kernels.Kernel:
    return kernels.Kernel("debian-6.1", tmp_path)


def test_missing_qemu_names_the_package(fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(
        HarnessError,
        match="qemu-system-x86_64 not found: `sudo apt-get install qemu-system-x86`",
    ):
        Machine("test")
    with pytest.raises(
        HarnessError,
        match="qemu-system-aarch64 not found: `sudo apt-get install qemu-system-arm`",
    ):
        Machine("test", kernel=kernels.named("debian-6.1", "arm64"))
    assert not fp.calls


def test_missing_emulator_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "BINFMT", tmp_path)
    with pytest.raises(HarnessError, match="`sudo apt-get install qemu-user-static`"):
        root.binfmt_hook(ARM64)


class TestAccelerator:
    @pytest.fixture(autouse=True)
    def version(self, fp: FakeProcess) -> None:
        fp.register(
            ["/bin/qemu-system-x86_64", "--version"], stdout="QEMU emulator version 7.2\n", occurrences=2
        )

    def kvm(self, monkeypatch: pytest.MonkeyPatch, may_open: bool) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: may_open)

    def test_hanging_kvm_guest_means_tcg(
        self, fp: FakeProcess, monkeypatch: pytest.MonkeyPatch, kernel: kernels.Kernel
    ) -> None:
        def hang(process: object) -> None:
            raise subprocess.TimeoutExpired("qemu-system-x86_64", accel.PROBE_SECONDS)

        self.kvm(monkeypatch, True)
        guest = fp.register(["/bin/setpriv", fp.any()], callback=hang)
        assert accel.choose(kernel) == "tcg"
        assert accel.choose(kernel) == "tcg"
        assert guest.call_count() == 1  # and then it was known

    @pytest.mark.parametrize(("status", "expected"), [(0, "kvm"), (1, "tcg"), (-6, "tcg")])
    def test_kvm_is_used_only_if_a_guest_ends_well(
        self,
        fp: FakeProcess,
        monkeypatch: pytest.MonkeyPatch,
        kernel: kernels.Kernel,
        status: int,
        expected: str,
    ) -> None:
        self.kvm(monkeypatch, True)
        fp.register(["/bin/setpriv", fp.any()], returncode=status)
        assert accel.choose(kernel) == expected

    def test_other_architecture_means_tcg(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.kvm(monkeypatch, True)
        assert accel.choose(kernels.Kernel("debian-6.1-arm64", tmp_path)) == "tcg"

    def test_missing_kvm_means_tcg(self, monkeypatch: pytest.MonkeyPatch, kernel: kernels.Kernel) -> None:
        self.kvm(monkeypatch, False)
        assert accel.choose(kernel) == "tcg"


def test_refused_module_shows_the_reason(fp: FakeProcess, tmp_path: Path) -> None:
    folder, lock = claim("test")
    (folder / "console.log").write_text("pcie_nymph: disagrees about version of symbol module_layout\n")
    (folder / "qemu.log").touch()
    machine = object.__new__(Machine)
    machine.state = State("test", 1, "debian-6.1", "tcg", "4G", 1, str(tmp_path), "running")
    machine._folder, machine._project = folder, project.here()
    machine._connected = {"root"}
    fp.register(["/bin/ssh", fp.any()], returncode=1, stderr="insmod: ERROR: could not insert module")
    module = Path(kernels.__file__).parents[2] / "build/debian-6.1/kernel/pcie_nymph.ko"
    with pytest.raises(HarnessError, match=r"refused pcie_nymph\.ko: insmod: ERROR") as error:
        machine.load(module)
    assert "disagrees about version" in str(error.value)
    lock.close()


@pytest.mark.parametrize(
    "how,status,said",
    [
        ("panicked", 121, "the guest's kernel panicked"),
        ("running", 125, "the machine 'test' was taken down meanwhile"),
        ("removed", 125, "the machine 'test' was taken down meanwhile"),
    ],
)
def test_ssh_says_how_the_machine_was_lost(
    fp: FakeProcess, tmp_path: Path, how: str, status: int, said: str
) -> None:
    folder, lock = claim("test")
    for name in ("running", "console.log", "qemu.log"):
        (folder / name).touch()
    State("test", 1, "debian-6.1", "tcg", "4G", 1, str(tmp_path), "running").write()

    def loses(_: object) -> None:
        if how == "removed":
            shutil.rmtree(folder)
        else:
            State("test", 1, "debian-6.1", "tcg", "4G", 1, str(tmp_path), how).write()

    fp.register(["/bin/ssh", fp.any()], returncode=255)
    fp.register(["/bin/ssh", fp.any()], returncode=255, callback=loses)
    with pytest.raises(HarnessError, match=said) as error:
        cli.cli(["ssh", "--name", "test", "--", "true"], standalone_mode=False)
    assert error.value.exit_status == status
    lock.close()


class TestApt:
    @pytest.fixture(autouse=True)
    def keyring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        keyring = tmp_path / "keyring.gpg"
        keyring.touch()
        monkeypatch.setattr(apt, "KEYRING", keyring)

    def test_missing_network_shows_the_sources(self, fp: FakeProcess) -> None:
        fp.register(["/bin/apt-get", "indextargets", fp.any()], stdout="", occurrences=2)
        offline = "Err: http://deb.debian.org/debian bookworm\n  Could not resolve 'deb.debian.org'"
        fp.register(["/bin/apt-get", "-q", fp.any()], returncode=100, stderr=offline)
        with pytest.raises(HarnessError, match="apt-get update failed") as error:
            kernels.prepare("debian-6.1")
        assert "Could not resolve" in str(error.value)
        assert "http://deb.debian.org/debian bookworm main" in str(error.value)
        assert not (cache_folder() / "kernel-debian-6.1").exists()

    def test_mirrors_of_the_host_are_used(self, fp: FakeProcess) -> None:
        uris = "http://mirror.example/debian/\nhttp://other.example/thing/\nhttp://mirror.example/debian-security/\n"
        fp.register(["/bin/apt-get", "indextargets", fp.any()], stdout=uris)
        suites = [line.split("] ")[1] for line in apt.sources().splitlines()]
        assert suites == [
            "http://mirror.example/debian bookworm main",
            "http://mirror.example/debian bookworm-updates main",
            "http://mirror.example/debian bookworm-backports main",
            "http://mirror.example/debian-security bookworm-security main",
        ]

    def test_newer_kernel_series_is_refused(self, fp: FakeProcess) -> None:
        fp.register(["/bin/apt-get", "indextargets", fp.any()], stdout="", occurrences=2)
        fp.register(["/bin/apt-get", "-q", fp.any()])
        depends = "linux-image-amd64\n  Depends: linux-image-6.13.1-amd64\n"
        fp.register(["/bin/apt-cache", fp.any()], stdout=depends)
        with pytest.raises(HarnessError, match=r"is 6\.13\.1-amd64 now, not 6\.12\.x: choose another kernel"):
            kernels.prepare("backports-6.12")

    def test_missing_keyring_names_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apt, "KEYRING", Path("/no/such"))
        with pytest.raises(HarnessError, match="/no/such is missing: `sudo apt-get install debian"):
            apt.sources()


def test_missing_subordinate_ids_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("ada", "x", 4242, 4242, "", "", "")))
    with pytest.raises(HarnessError, match=r"ada has no line in /etc/subuid.* sudo usermod --add-subuids"):
        root._check_subordinate_ids()


def test_unfinished_folder_is_never_seen() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise HarnessError("no")

    with pytest.raises(HarnessError, match="no"):
        cached("thing", fail)
    assert [path.name for path in cache_folder().iterdir()] == ["thing.lock"]
    folder = cached("thing", lambda folder: (folder / "whole").touch())
    assert cached("thing", fail) == folder
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_name_is_taken_until_its_owner_ends() -> None:
    folder, lock = claim("one")
    with pytest.raises(HarnessError, match=r"there is a machine 'one' already.*nymph-vm down --name one"):
        claim("one")
    lock.close()
    assert claim("one")[0] == folder
