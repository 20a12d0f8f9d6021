# SPDX-License-Identifier: MIT
"""nymphd: the fabric as a service. docs/nymphd.md has what it says and takes.

It needs what `pip install 'pynymph[service]'` brings; nothing else of pynymph does.
"""
