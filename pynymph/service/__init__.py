# SPDX-License-Identifier: MIT
"""nymphd: the fabric as a service. docs/nymphd.md has what it says and takes.

It needs what `pip install 'pynymph[service]'` brings; nothing else of pynymph does.
"""

import os

# ONNX Runtime reads it when it is imported: else it would write into the home directory, and to Microsoft.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
