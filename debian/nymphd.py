#!/usr/bin/python3 -I
# SPDX-License-Identifier: MIT
"""The command nymphd of the package: with the packages that came with it before all others."""

import sys

sys.path.insert(0, "/usr/lib/nymphd")

from nymphd.__main__ import main

if __name__ == "__main__":
    main()
