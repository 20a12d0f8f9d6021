# SPDX-License-Identifier: MIT
"""What all tests share: the environment that a person's shell has."""

from __future__ import annotations

import os

# Of the make that runs these tests: another make would print more.
for _name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(_name, None)
