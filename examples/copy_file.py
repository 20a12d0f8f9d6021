#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copy a file, and prove that the copy is the original: mapping to mapping, without a read() or write()."""

import argparse
import mmap
import os
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pynymph

CHUNK = 8 << 20
QUEUED = 4


def chunks(source: mmap.mmap, target: mmap.mmap) -> Iterator[pynymph.Copy]:
    with memoryview(source) as src, memoryview(target) as dst:
        for at in range(0, len(src), CHUNK):
            yield pynymph.Copy(src=src[at : at + CHUNK], dst=dst[at : at + CHUNK], verify=True)


def copy_file(source: Path, target: Path, device: str) -> int:
    """Returns the bytes copied. The target is there only once all of it is right."""
    part = target.with_name(f"{target.name}.part")
    with source.open("rb") as reads, part.open("w+b") as writes:
        size = os.fstat(reads.fileno()).st_size
        writes.truncate(size)
        if size:
            with (
                mmap.mmap(reads.fileno(), size, access=mmap.ACCESS_READ) as src,
                mmap.mmap(writes.fileno(), size) as dst,
                pynymph.Ring(QUEUED, device=device) as ring,
            ):
                todo = chunks(src, dst)
                transfers = deque(ring.submit(chunk) for chunk in islice(todo, QUEUED))
                while transfers:
                    transfers.popleft().result()  # VerifyError if what arrived is not what was sent
                    transfers.extend(ring.submit(chunk) for chunk in islice(todo, 1))
                dst.flush()
    part.replace(target)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    try:
        size = copy_file(chosen.source, chosen.target, chosen.device)
    except OSError as error:  # which a NymphError is, too
        sys.exit(f"copy_file: {error}")
    print(f"{size} bytes, all verified")


if __name__ == "__main__":
    main()
