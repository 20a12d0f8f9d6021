#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Work on one block of a big array while the ring brings the next ones: an asynchronous loader.

The array lives in a file; blocks come into memory of the ring's, verified, a few ahead of whoever takes them.
"""

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pynymph


async def blocks(
    array: NDArray[np.float32], rows: int, *, ahead: int = 3, device: str
) -> AsyncIterator[NDArray[np.float32]]:
    """Each `rows` rows of `array`, in their order. A block is good until the next one is asked for."""
    block_bytes = rows * array[:1].nbytes
    async with pynymph.AsyncRing(ahead, device=device) as ring:
        free = deque(ring.ring.allocate(block_bytes) for _ in range(ahead))
        coming: deque[tuple[asyncio.Task[pynymph.Completion], pynymph.RingBuffer, int]] = deque()
        starts = iter(range(0, len(array), rows))
        try:
            while True:
                while free and (start := next(starts, None)) is not None:
                    source = array[start : start + rows]
                    buffer = free.popleft()
                    task = asyncio.create_task(
                        ring.copy(src=source.data, dst=buffer[: source.nbytes], verify=True)
                    )
                    coming.append((task, buffer, len(source)))
                if not coming:
                    return
                task, buffer, count = coming.popleft()
                await task
                loaded = np.asarray(buffer[: count * array[:1].nbytes]).view(array.dtype)
                yield loaded.reshape(count, *array.shape[1:])
                free.append(buffer)
        finally:
            for task, _, _ in coming:
                task.cancel()


async def mean_of_columns(array: NDArray[np.float32], rows: int, device: str) -> NDArray[np.float64]:
    total = np.zeros(array.shape[1])
    async for block in blocks(array, rows, device=device):
        total += block.sum(axis=0, dtype=np.float64)
        await asyncio.sleep(0)  # the loop handles copies that have arrived
    return total / len(array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a float32 array in two dimensions, of numpy.save()")
    parser.add_argument("--rows", type=int, default=4096, help="of each block (default: 4096)")
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    try:
        array = np.load(chosen.file, mmap_mode="r")
        means = asyncio.run(mean_of_columns(array, chosen.rows, chosen.device))
    except (OSError, ValueError) as error:  # a NymphError is an OSError
        sys.exit(f"prefetch: {error}")
    print("means of the columns:", np.array2string(means, precision=6))


if __name__ == "__main__":
    main()
