# SPDX-License-Identifier: MIT
"""Copy 18 bytes, and print the proof that they arrived."""

import pynymph

source, target = b"every byte arrived", bytearray(18)
with pynymph.Ring() as ring:
    done = ring.copy(src=source, dst=target, verify=True)
print(target.decode(), "by", done.engine, "with digest", pynymph.digest.payload(target).hex())
