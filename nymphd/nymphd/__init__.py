# SPDX-License-Identifier: MIT
"""nymphd serves the fabric over HTTPS. docs/reference/nymphd.md has its settings, requests and answers."""

import os

__version__ = "0.1.0"

# ONNX Runtime reads it when it is imported: else it would write into the home directory, and to Microsoft.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
