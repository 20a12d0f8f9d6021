#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fill a torch tensor by DMA: pynymph takes tensors of the CPU, of any dtype, as they are."""

import argparse

import torch

import pynymph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    source = torch.arange(1 << 16, dtype=torch.float32).to(torch.bfloat16)
    target = torch.zeros_like(source)
    with pynymph.Ring(device=chosen.device) as ring:
        done = ring.copy(src=source, dst=target, verify=True)
    assert torch.equal(source, target)
    print(f"{target.numel()} numbers of {target.dtype}, {done.bytes_done} bytes, verified by {done.engine}")


if __name__ == "__main__":
    main()
