# SPDX-License-Identifier: MIT
"""What several of the guest's test modules need."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that writes back to a disk, as tmpfs does not."""
    folder = tmp_path_factory.mktemp("disk")
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    for command in (["modprobe", "-a", "loop", "ext4"], ["mkfs.ext4", "-q", "-F", image],
                    ["mount", "-o", "loop", image, mounted]):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]} here")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no disk to mount: {error.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True)
