#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copy while the event loop does something else: operations of an AsyncRing are awaited."""

import argparse
import asyncio

import pynymph


async def copies(count: int, device: str) -> int:
    """Return how often the loop had a turn while `count` verified copies were under way."""
    sources = [bytes([number % 256]) * 100_000 for number in range(count)]
    targets = [bytearray(100_000) for _ in range(count)]
    async with pynymph.AsyncRing(device=device) as ring:
        each = (ring.copy(src=src, dst=dst, verify=True) for src, dst in zip(sources, targets, strict=True))
        all_of_them = asyncio.gather(*each)
        turns = 0
        while not all_of_them.done():
            turns += 1
            await asyncio.sleep(0)
        await all_of_them
    assert targets == sources
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many copies (default: 100)")
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    turns = asyncio.run(copies(chosen.count, chosen.device))
    print(f"{chosen.count} copies, all verified; during them the loop had {turns} turns")


if __name__ == "__main__":
    main()
