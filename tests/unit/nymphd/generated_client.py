# SPDX-License-Identifier: MIT
"""The client that openapi-python-client makes, at a nymphd: generated_client.py FOLDER URL CERTIFICATE TOKEN.

Prints, in JSON, the types of what it got, and some of it; test_clients.py judges.
"""

import base64
import io
import json
import ssl
import sys
from typing import Any

folder, url, certificate, token = sys.argv[1:]
sys.path.insert(0, folder)

from nymphd_client import AuthenticatedClient, Client  # noqa: E402
from nymphd_client.api.fabric import get_history, get_status, verify_fabric  # noqa: E402
from nymphd_client.api.inference import infer, list_models  # noqa: E402
from nymphd_client.api.open_inference_protocol import model_infer, model_metadata  # noqa: E402
from nymphd_client.api.operation import get_metrics, get_readiness  # noqa: E402
from nymphd_client.models import GetHistorySpan, InferenceRequest, InferProfile, InferRequest  # noqa: E402
from nymphd_client.types import File  # noqa: E402

context = ssl.create_default_context(cafile=certificate)
client = AuthenticatedClient(url, token, verify_ssl=context)
stranger = Client(url, verify_ssl=context)
data = b"import os\n\nprint(os.getcwd())\n" * 20
tensor = {"name": "given", "shape": [2], "datatype": "INT8", "data": [1, -2]}

in_json = infer.sync(client=client, body=InferRequest(model="magika", input_=base64.b64encode(data).decode()))
as_bytes = infer.sync(client=client, body=File(io.BytesIO(data)), profile=InferProfile.EFFICIENT)
answers: dict[str, Any] = {
    "status": get_status.sync(client=client),
    "verification": verify_fabric.sync(client=client, bytes_=4096),
    "history": get_history.sync(client=client, span=GetHistorySpan.DAY),
    "models": list_models.sync(client=client),
    "in_json": in_json,
    "as_bytes": as_bytes,
    "unknown": infer.sync(client=client, body=InferRequest(model="nothing", input_="aGVsbG8=")),
    "refused": get_status.sync(client=stranger),
    "readiness": get_readiness.sync(client=client),
    "metadata": model_metadata.sync("identity-INT8", client=client),
    "tensors": model_infer.sync(
        "identity-INT8", client=client, body=InferenceRequest.from_dict({"inputs": [tensor]})
    ),
}
found = {name: [type(each).__name__, each.to_dict()] for name, each in answers.items()}
found["metrics"] = ["str", get_metrics.sync_detailed(client=client).content.decode()]
print(json.dumps(found))
