# SPDX-License-Identifier: MIT
"""Numbers from outside, widened and range-checked before anything is computed with them.

Every public function passes the offsets, lengths, sizes, descriptors, labels and timeouts it is given through
this module. NumPy computes in the type of its operands, so `np.uint16(60000) + 10000` is 4464: after this
module, a number is a Python int, a Python float, or an array of int64.
"""

from __future__ import annotations

import errno
import math
import operator
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

from pynymph.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def whole(value: Any, name: str, low: int | None = None, high: int | None = None) -> int:
    """Convert `value` to an int from `low` to `high`, both included; None is no limit.

    Args:
        value: an int, whatever has `__index__`, a float, Decimal or Fraction without a fraction, or a NumPy
            scalar or zero-dimensional array of these. A bool is none: it is a mask or a slip.
        name: what the caller calls it, for the error.

    Raises:
        ArgumentError: it has a fraction, is not finite, or is out of range.
        ArgumentTypeError: it is no number.
    """
    number = value if type(value) is int else _number(value)
    exact = number if type(number) is int else _exact(number)
    if exact is None or (low is not None and exact < low) or (high is not None and exact > high):
        kind = ArgumentError if number is not None else ArgumentTypeError
        raise kind(errno.EINVAL, f"{name} is {shown(value)}; give a whole number{_span(low, high)}")
    return exact


def whole_array(values: Any, name: str) -> NDArray[np.int64]:
    """Convert numbers to an array of int64.

    Args:
        values: a number, nested sequences of numbers, or an array. Elements are as for whole().
        name: what the caller calls it, for the error.

    Returns:
        An array of the same shape; a lone number has none.

    Raises:
        ArgumentError: as whole() raises it, with the index of the first element that is wrong.
    """
    import numpy as np

    try:
        array = np.asarray(values)
        if array.dtype.kind == "f" and not hasattr(values, "dtype"):
            array = np.asarray(values, object)  # [2**62 + 1, 0.0] as floats would be another number
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # ragged; a tensor that refuses
        raise ArgumentError(errno.EINVAL, f"{name} is no array of whole numbers: {error}") from None
    if array.ndim == 0:
        return np.array(whole(values, name, INT64_MIN, INT64_MAX))
    kind = array.dtype.kind
    if kind == "i" or (kind == "u" and array.itemsize < 8):
        return array.astype(np.int64)
    if kind == "u":
        return _checked(array, array <= np.uint64(INT64_MAX), name)
    if kind == "f":
        # In their own type, 65504 would be the largest number that float16 can be compared with.
        wide = array.astype(np.longdouble)
        with np.errstate(invalid="ignore"):
            return _checked(array, (wide == np.trunc(wide)) & (wide >= -(2.0**63)) & (wide < 2.0**63), name)
    if kind == "O" or (kind == "V" and array.dtype.names is None):  # ml_dtypes has its numbers as V
        flat = [
            whole(each, f"{name}[{i}]", INT64_MIN, INT64_MAX) for i, each in enumerate(array.ravel().tolist())
        ]
        return np.array(flat, np.int64).reshape(array.shape)
    raise ArgumentTypeError(errno.EINVAL, f"{name} is an array of {array.dtype}; give whole numbers")


def seconds(timeout: Any) -> float | None:
    """Convert a timeout to a float.

    Args:
        timeout: seconds. None and infinity wait for ever; 0 and less have passed already.

    Raises:
        ArgumentError: it is NaN.
        ArgumentTypeError: it is no number.
    """
    if timeout is None:
        return None
    hint = f"timeout is {shown(timeout)}; give seconds, or None to wait for ever"
    number = _number(timeout)
    if number is None:
        raise ArgumentTypeError(errno.EINVAL, hint)
    try:
        wanted = float(number)
    except (TypeError, ValueError, OverflowError):  # a signaling NaN; more than a float can be
        wanted = math.nan
    if math.isnan(wanted):
        raise ArgumentError(errno.EINVAL, hint)
    return max(0.0, wanted)


def shown(value: object) -> str:
    """Make a short form of `value` for a message: an int of more than 4300 digits has no repr."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value: Any) -> Any:
    """`value` as an int, or as what can have a fraction; None if it is no number."""
    if hasattr(value, "dtype"):  # NumPy's, or like it
        if value.ndim != 0 or getattr(value.dtype, "kind", "i") in "bcmMSU":
            return None
        item = value.item()
        value = value if type(item) is type(value) else item
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return value if isinstance(value, (Real, Decimal)) else None


def _exact(number: Any) -> int | None:
    """The int that is equal to `number`, if there is one of 64 bits: 1e999999999 has no place in memory."""
    if number is None:
        return None
    try:
        if not -UINT64_MAX <= number <= UINT64_MAX:
            return None
        exact = int(number)
    except ArithmeticError:  # a signaling NaN
        return None
    return exact if exact == number else None


def _checked(array: Any, fine: Any, name: str) -> NDArray[np.int64]:
    import numpy as np

    if not np.all(fine):
        i = int(np.argmin(fine))
        each = array.ravel()[i]
        raise ArgumentError(errno.EINVAL, f"{name}[{i}] is {each}; give a whole number{_span(None, None)}")
    whole_ones: NDArray[np.int64] = array.astype(np.int64)
    return whole_ones


def _span(low: int | None, high: int | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" from {low} up"
    return f" from {low} to {high}"
