# SPDX-License-Identifier: MIT
"""Tensors that a loader dequantized: FP8 with a scale for each block, and MXFP4, as transformers does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blake3 import blake3

from pynymph.weights.live import torch_dtype
from pynymph.weights.manifests import Tensor

_PIECE = 32 << 20
"""Bytes of quantized numbers that are dequantized at once, as far as rows of blocks allow."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def mismatch(live: tuple[int, ...], numbers: Tensor, scales: Tensor) -> str:
    """Tell why a live tensor of this shape can't be made of these, or return ""."""
    if numbers.dtype == "U8":  # MXFP4: two numbers in a byte, 16 bytes and a scale for a block
        *lead, rows, blocks, last = numbers.shape if len(numbers.shape) > 2 else (0, 0, 0)
        fits = last == 16 and scales.dtype == "U8" and scales.shape == numbers.shape[:-1]
        made: tuple[int, ...] = (*lead, 32 * blocks, rows)
    else:
        fits = len(numbers.shape) == len(scales.shape) > 1 and numbers.shape[:-2] == scales.shape[:-2]
        fits = fits and all(
            grid and not size % grid for size, grid in zip(numbers.shape, scales.shape, strict=True)
        )
        fits = fits and (scales.dtype == "U8" or torch_dtype(scales.dtype) is not None)
        made = numbers.shape
    if not fits:
        return f"its scales are {scales.dtype} {list(scales.shape)} for {numbers.dtype} {list(numbers.shape)}"
    return "" if made == live else f"is {list(live)} instead of {list(made)}"


class Pieces:
    """Dequantize a tensor of the files piece by piece, and make the digests of what was read.

    Args:
        numbers: what the manifest says of the quantized numbers.
        scales: what it says of their scales.
        raw: bytes of the numbers.
        raw_scales: bytes of the scales.
        live: the tensor to compare with. mismatch() returned "" for its shape.
    """

    def __init__(self, numbers: Tensor, scales: Tensor, raw: Any, raw_scales: Any, live: Any) -> None:
        import torch

        self._numbers, self._raw, self._live = numbers, raw, live
        copied = bytearray(raw_scales)  # what is hashed is what is used
        self.right = blake3(copied).digest() == scales.digest
        """Whether the bytes read are those of the manifest. It is known when differing() has ended."""
        dtype = torch_dtype(scales.dtype)
        self._scales = torch.frombuffer(copied, dtype=dtype).reshape(scales.shape).to(live.device)
        if dtype == torch.uint8:
            # An exponent has the place of one in a float. exp2() is not exact on each device.
            bits = self._scales.int() << 23
            self._scales = torch.where(bits == 0, 1 << 22, bits).view(torch.float32)
        self._scales = self._scales.float()

    def differing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the live tensor's bytes, in C order, that differ."""
        import torch

        numbers, live = self._numbers, self._live
        packed = numbers.dtype == "U8"
        if packed:  # its rows are the columns of the live one: a matrix at a time
            size = 16 * numbers.shape[-2] * numbers.shape[-3]
            scales = self._scales.reshape(-1, *self._scales.shape[-2:])
            live = live.reshape(-1, *live.shape[-2:])
        else:
            block, row = numbers.shape[-2] // self._scales.shape[-2], numbers.shape[-1]
            size, scales = block * row, self._scales.flatten(0, -2)
            live = live.reshape(len(scales), block, row)
        at_once = max(1, _PIECE // max(1, size))
        hasher = blake3(max_threads=blake3.AUTO)
        for first in range(0, len(scales), at_once):
            piece = bytearray(self._raw[first * size : (first + at_once) * size])
            hasher.update(piece)
            here, by = live[first : first + at_once], scales[first : first + at_once]
            raw = torch.frombuffer(piece, dtype=torch.uint8).to(live.device)
            if packed:
                table = torch.tensor((*_E2M1, *(-each for each in _E2M1)), device=live.device)
                values = torch.stack((table[(raw & 15).long()], table[(raw >> 4).long()]), -1)
                made = (values.reshape(*by.shape, 32) * by.unsqueeze(-1)).flatten(-2).mT
            else:
                values = raw.view(torch_dtype(numbers.dtype)).float()
                grid = values.reshape(len(by), block, by.shape[1], -1)
                made = (grid * by[:, None, :, None]).reshape(here.shape)
            made = made.to(live.dtype).contiguous()
            if not torch.equal(made.view(torch.uint8), here.contiguous().view(torch.uint8)):
                each = here[0].numel() * here.element_size()
                yield first * each, (first + len(here)) * each
        self.right = self.right and hasher.digest() == numbers.digest
