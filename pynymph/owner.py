# SPDX-License-Identifier: MIT
"""The base of everything that owns a descriptor, memory or a lock, and so exists once."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex


class Owner:
    """Refuse copy, deepcopy and pickle, as sockets do.

    A copy would have the same descriptor number, and close it when it goes: then that number may be a
    stranger's file.
    """

    _instead: ClassVar[str] = "make another one"
    """What to do instead, for the error."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"cannot copy or pickle a {type(self).__name__}: {self._instead}")
