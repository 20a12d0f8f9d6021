# SPDX-License-Identifier: MIT
"""Canonical CBOR: the one form in which evidence is written, and the only one in which it is read.

It is the deterministic encoding of RFC 8949, 4.2.1, of few types: whole numbers of 64 bits, byte strings,
text, arrays, and maps whose keys are text. There are no tags, floats, booleans or nulls. The module needs the
extra `pynymph[evidence]`.
"""

from __future__ import annotations

import errno
from typing import Any, NoReturn

from pynymph.errors import ArgumentError, NymphError

DEEPEST = 8
"""Containers within containers that are read."""

_INTEGERS = range(-(1 << 64), 1 << 64)
# All that cbor2 decodes by itself. Shared values (28, 29) would make a file of some bytes an endless tree.
_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)


def _refuse(decoder: Any, *value: Any) -> NoReturn:
    raise ValueError("it has a tag")


def _cbor2() -> Any:
    try:
        import cbor2
    except ImportError as error:
        message = f"cbor2 is not installed: {error}; install it: pip install 'pynymph[evidence]'"
        raise NymphError(errno.ENOSYS, message) from None
    return cbor2


def encode(value: Any) -> bytes:
    """Encode a value of dicts, lists, bytes, strings and integers.

    Raises:
        ArgumentError: EINVAL, a part of it has another type.
        NymphError: ENOSYS, `cbor2` is not installed.
    """
    cbor2 = _cbor2()
    _check(value, DEEPEST)
    return bytes(cbor2.dumps(value, canonical=True))


def decode(data: bytes, name: str, most: int) -> Any:
    """Decode canonical CBOR of somebody else.

    Args:
        data: all bytes.
        name: what they are, for errors.
        most: bytes that it may have.

    Returns:
        A value of dicts, lists, bytes, strings and integers, which encode() gives the same bytes for.

    Raises:
        ArgumentError: EINVAL, the bytes are not that, or are not in their canonical form.
        NymphError: ENOSYS, `cbor2` is not installed.
    """
    cbor2 = _cbor2()
    if len(data) > most:
        raise ArgumentError(errno.EINVAL, f"{name} has {len(data)} bytes, and {most} are the most")
    try:
        value = cbor2.loads(
            data,
            tag_hook=_refuse,
            semantic_decoders=dict.fromkeys(_TAGS, _refuse),
            max_depth=DEEPEST,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
        _check(value, DEEPEST)
        same = cbor2.dumps(value, canonical=True) == data
    except (cbor2.CBORError, ValueError) as error:
        why = error.strerror if isinstance(error, NymphError) else str(error)
        raise ArgumentError(errno.EINVAL, f"{name} is damaged, or no canonical CBOR: {why}") from None
    if not same:
        raise ArgumentError(errno.EINVAL, f"{name} is not in the canonical form of CBOR; get it again")
    return value


def _check(value: Any, deepest: int) -> None:
    """Refuse types that have more than one form, or none."""
    kind = type(value)
    if kind is bytes or (kind is int and value in _INTEGERS):
        return
    if kind is str:
        if not value.isascii():
            value.encode()  # a surrogate is a ValueError
        return
    if kind in (dict, list) and deepest:
        for each in value:
            if kind is dict:
                if type(each) is not str:
                    raise ArgumentError(errno.EINVAL, f"a key of a map is {type(each).__name__}, and no text")
                _check(each, 0)
                _check(value[each], deepest - 1)
            else:
                _check(each, deepest - 1)
        return
    if kind in (dict, list):
        raise ArgumentError(errno.EINVAL, f"it is nested more than {DEEPEST} times")
    raise ArgumentError(errno.EINVAL, f"it has a value of type {kind.__name__}, which evidence does not have")
