#!/bin/sh
# SPDX-License-Identifier: MIT
# kserve's REST client can't receive BYTES that are not UTF-8, though the Open Inference Protocol's binary extension
# carries any: InferResponse.from_bytes() turns each binary tensor into a list for JSON, which for BYTES is text, and
# raises an InferenceError that advises binary_data=True, which the response has. tritonclient takes the same answer.
# Seen with kserve 0.21.0 and tritonclient 2.73.0. A server has to keep such outputs to tensors of UINT8, or to UTF-8.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check kserve==0.21.0 'tritonclient[http]==2.73.0'
"$folder/venv/bin/python" - << 'END'
import json
import struct
from importlib.metadata import version

from kserve import InferResponse
from kserve.errors import InferenceError
from tritonclient.http import InferResult

print("kserve", version("kserve"), "tritonclient", version("tritonclient"))

content = b"\xff\xd8\xff\xe0"  # as a JPEG begins
behind = struct.pack("<I", len(content)) + content
output = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(behind)}}
head = json.dumps({"model_name": "m", "outputs": [output]}).encode()

by_triton = InferResult.from_response_body(head + behind, header_length=len(head)).as_numpy("image")
print("tritonclient:", by_triton)
assert by_triton.tolist() == [content]

try:
    InferResponse.from_bytes(head + behind, len(head))
except InferenceError as error:
    print("kserve:", error)
    assert "binary_data=True" in str(error)
else:
    raise SystemExit("kserve takes it now")
END
