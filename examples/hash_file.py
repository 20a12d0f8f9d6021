#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print the BLAKE3 of files as b3sum does; the kernel hashes the mapped file, and nothing is copied."""

import argparse
import mmap
import sys
from pathlib import Path

import pynymph

LONGEST = 1 << 30  # the longest operation


def hash_file(path: Path, ring: pynymph.Ring) -> bytes:
    """Return the digest of a file of at most 1 GiB."""
    size = path.stat().st_size
    if not size:
        return pynymph.digest.payload(b"")  # an empty file has no mapping
    if size > LONGEST:
        raise OSError(f"{path} has {size} bytes; this example takes at most {LONGEST}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        return ring.digest(src=mapped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    try:
        with pynymph.Ring(device=chosen.device) as ring:
            for path in chosen.files:
                print(f"{hash_file(path, ring).hex()}  {path}")
    except OSError as error:  # a NymphError is one, too
        sys.exit(f"hash_file: {error}")


if __name__ == "__main__":
    main()
