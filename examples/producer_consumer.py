#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Two processes share memory: one fills it by DMA, the other proves that all of it arrived.

The producer's ring copies blocks, each verified, into a buffer that it has exported as a dma-buf. Its file
descriptor goes to the consumer over a UNIX socket, and with each block its digest. The consumer's own ring
imports the dma-buf, digests what is there, and answers; nothing but that one buffer holds a block twice.
"""

import argparse
import os
import socket
import sys

import pynymph

DIGEST = 32
LONG = 60.0


def receive(peer: socket.socket, length: int) -> bytes:
    data = peer.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        raise ConnectionError("the other process has ended")
    return data


def produce(peer: socket.socket, size: int, blocks: int, device: str) -> int:
    """Returns the bytes that the consumer has acknowledged."""
    with pynymph.Ring(device=device) as ring, ring.allocate(size) as buffer:
        fd = buffer.export()
        socket.send_fds(peer, [b"."], [fd])
        os.close(fd)
        for _ in range(blocks):
            done = ring.copy(src=os.urandom(size), dst=buffer, verify=True)
            assert done.src_digest is not None
            peer.sendall(done.src_digest)
            receive(peer, 1)
    return blocks * size


def consume(peer: socket.socket, size: int, blocks: int, device: str) -> None:
    _, fds, _, _ = socket.recv_fds(peer, 1, 1)
    if not fds:
        raise ConnectionError("the producer has ended")
    fd = fds[0]
    with pynymph.Ring(device=device) as ring, ring.import_dmabuf(fd, read_only=True) as buffer:
        os.close(fd)
        block = buffer[:size]  # the rest is of its last page
        for number in range(blocks):
            sent = receive(peer, DIGEST)
            if ring.digest(src=block) != sent:
                raise ValueError(f"block {number} is not what was sent")
            peer.sendall(b".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes of a block")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--device", default=pynymph.ring.DEVICE, help='the driver\'s, or "model:"')
    chosen = parser.parse_args()
    ours, theirs = socket.socketpair()
    # Before there is a ring: that belongs to the process that opens it.
    child = os.fork()
    peer, other, act = (ours, theirs, produce) if child else (theirs, ours, consume)
    other.close()
    peer.settimeout(LONG)
    try:
        done = act(peer, chosen.size, chosen.blocks, chosen.device)
    except (OSError, ValueError) as error:  # a NymphError is an OSError, too
        sys.exit(f"producer_consumer: {'consumer' if child == 0 else 'producer'}: {error}")
    finally:
        peer.close()
    if child:
        if os.waitpid(child, 0)[1]:
            sys.exit("producer_consumer: the consumer failed")
        print(f"{done} bytes in {chosen.blocks} blocks, all verified by the consumer")


if __name__ == "__main__":
    main()
