#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reverse the order of a thousand blocks with one request: a batch of entries in a NumPy array."""

import argparse

import numpy as np

import pynymph
from pynymph import batch

BLOCK = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1000, help="1 to 4096 (default: 1000)")
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    with pynymph.Ring(entries=chosen.blocks, device=chosen.device) as ring:
        src, dst = (ring.allocate(chosen.blocks * BLOCK) for _ in range(2))
        blocks = np.asarray(src).view(np.uint32).reshape(chosen.blocks, -1)
        blocks[:] = np.arange(chosen.blocks)[:, None]  # each block is full of its number
        at = np.arange(chosen.blocks) * BLOCK
        records = ring.run_many(batch.copies(src, dst, src_at=at, dst_at=at[::-1], length=BLOCK, verify=True))
        moved = np.asarray(dst).view(np.uint32).reshape(chosen.blocks, -1)
        assert (moved == blocks[::-1]).all()
        print(f"{len(records)} copies, {records['bytes_done'].sum()} bytes, all verified")


if __name__ == "__main__":
    main()
