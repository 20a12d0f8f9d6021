#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compute in memory of the driver: NumPy sees a buffer as an array, and no byte is copied to get there."""

import argparse

import numpy as np

import pynymph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    matrix = np.random.default_rng(1).random((256, 1024), dtype=np.float32)
    with pynymph.Ring(device=chosen.device) as ring, ring.allocate(matrix.nbytes) as buffer:
        done = ring.copy(src=matrix.data, dst=buffer, verify=True)
        arrived = np.asarray(buffer).view(np.float32).reshape(matrix.shape)
        assert np.array_equal(arrived.sum(axis=1), matrix.sum(axis=1))
        assert done.dst_digest == pynymph.digest.payload(matrix.data)
        print(f"{len(arrived)} rows, {done.bytes_done} bytes, verified by {done.engine}")
        del arrived  # the buffer is given back only when nothing uses it


if __name__ == "__main__":
    main()
