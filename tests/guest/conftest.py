# SPDX-License-Identifier: MIT
"""What several of the guest's test modules need."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from abi import IS_NATIVE, SYSFS, AttestKey, Context, settle
from rsa_keys import RSAKey


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", action="store_true", help="Rings are of pynymph.model, not of the driver.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "emulated: of what user-mode Linux has not: docs/how-to/native.md")
    if config.getoption("--model"):
        import pynymph

        assert pynymph.Ring.__init__.__kwdefaults__ is not None
        pynymph.Ring.__init__.__kwdefaults__["device"] = "model:"
        pynymph.query.__defaults__ = ("model:",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if IS_NATIVE and item.get_closest_marker("emulated"):
            item.add_marker(pytest.mark.skip("user-mode Linux has no such thing: docs/how-to/native.md"))


@pytest.fixture(autouse=True)
def settled() -> None:
    """No test sees counters change for one before it."""
    if SYSFS.exists():
        settle()


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> None:
    """For tests of what the model does not do."""
    if request.config.getoption("--model"):
        pytest.skip("the model runs everything at once, in the calling thread, which Ctrl-C can cut short")


@pytest.fixture
def context() -> Iterator[Context]:
    """An open file of the device, without a ring."""
    with Context() as context:
        yield context


@pytest.fixture
def attest_key() -> Iterator[bytes]:
    """The administrator's key. Needs root."""
    key = os.urandom(32)
    AttestKey.add(key)
    yield key
    AttestKey.remove()


@pytest.fixture
def sign_key() -> Iterator[RSAKey]:
    """The administrator's key that signs. Needs root."""
    key = RSAKey.of()
    AttestKey.add_signer(key.private())
    yield key
    AttestKey.remove()


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that writes back to a disk, as tmpfs does not."""
    folder = tmp_path_factory.mktemp("disk")
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    for command in (
        ["modprobe", "-a", "loop", "ext4"],
        ["mkfs.ext4", "-q", "-F", image],
        ["mount", "-o", "loop", image, mounted],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]} here")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no disk to mount: {error.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True)
