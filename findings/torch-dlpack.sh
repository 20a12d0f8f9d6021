#!/bin/sh
# SPDX-License-Identifier: MIT
# torch's DLPack loses two things that a tensor or an array says of itself. Seen with torch 2.13.0 and NumPy 2.4:
#  - a tensor with the negative bit, as `z.conj().imag` is, exports its memory without the sign: NumPy reads 2.0
#    where torch says -2.0. (The conjugate bit and requires_grad are refused with a BufferError.)
#  - torch.from_dlpack() of an array that is read-only, and says so by DLPACK_FLAG_BITMASK_READ_ONLY, is a tensor
#    that writes to it, `bytes` included.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 'numpy>=2.1,<3'
"$folder/venv/bin/python" - << 'END'
import numpy as np
import torch

print("torch", torch.__version__, "numpy", np.__version__)

imag = torch.tensor([1 + 2j, 3 + 4j]).conj().imag
seen = np.from_dlpack(imag)
print("torch says", imag.tolist(), "and by DLPack it is", seen.tolist())
assert imag.is_neg() and imag.tolist() == [-2.0, -4.0]
assert seen.tolist() == [2.0, 4.0]

data = bytes(b"12345678" * 4)
array = np.frombuffer(data, np.uint8)
assert not array.flags.writeable
assert not np.from_dlpack(array).flags.writeable
torch.from_dlpack(array)[0] = ord("A")
print("bytes that torch wrote to:", data[:8])
assert data[:8] == b"A2345678"
END
