# SPDX-License-Identifier: MIT
"""python3 -m pynymph: the command pynymph."""

from pynymph.command import main

if __name__ == "__main__":
    main()
