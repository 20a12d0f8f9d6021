# SPDX-License-Identifier: MIT
# The compiled module. It names nothing out of the header, so there is nothing here to drift.
from typing import Any

class _Lib:
    def __getattr__(self, name: str) -> int: ...

ffi: Any
lib: _Lib
