# SPDX-License-Identifier: MIT
"""tritonclient and kserve's client, as they are, at a nymphd; run in an environment that has them.

oip_clients.py URL CERTIFICATE TOKEN: prints, in JSON, what each sent and got; test_clients.py judges.
Models: identity-TYPE for each, with the input `given` and the output `same`; and `pair`.
"""

import asyncio
import json
import ssl
import sys
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

INTEGERS = {
    name.upper(): np.array([np.iinfo(name).min, 1, np.iinfo(name).max], name)
    for name in (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
}
FLOATS = {
    name: np.array([-1.5, 0.0, float(ml_dtypes.finfo(dtype).max), float(ml_dtypes.finfo(dtype).tiny)], dtype)
    for name, dtype in {
        "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16
    }.items()
}  # fmt: skip
VALUES: dict[str, Any] = {
    "BOOL": np.array([True, False, True]),
    "BYTES": np.array(["ring", "", "größer"], object),
    **INTEGERS,
    **FLOATS,
}
PAIR = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([[b"x"], [b"yz"]], object)}


def same(sent: Any, got: Any) -> bool:
    if sent.dtype == object:
        as_bytes = [
            [each if isinstance(each, bytes) else str(each).encode() for each in of.reshape(-1)]
            for of in (sent, got)
        ]
        return as_bytes[0] == as_bytes[1] and sent.shape == got.shape
    return sent.dtype == got.dtype and sent.shape == got.shape and sent.tobytes() == got.tobytes()


def packed(values: Any) -> str:
    """The bytes in the binary extension, in hexadecimal."""
    return (triton.InferInput("x", values.shape, "BYTES").set_data_from_numpy(values)._get_binary_data()
            if values.dtype == object else values.tobytes()).hex()  # fmt: skip


def try_triton(url: str, certificate: str, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    client = triton.InferenceServerClient(
        url.removeprefix("https://"),
        ssl=True,
        ssl_context_factory=lambda: ssl.create_default_context(cafile=certificate),
        network_timeout=60,
    )

    def infer(model: str, inputs: dict[str, Any], as_bytes: bool, outputs: Any = (), **options: Any) -> Any:
        given = []
        for name, values in inputs.items():
            kind = triton.InferInput(name, values.shape, triton_type(values))
            given.append(kind.set_data_from_numpy(values, binary_data=as_bytes))
        wanted = [triton.InferRequestedOutput(name, binary_data=as_bytes) for name in outputs] or None
        return client.infer(model, given, outputs=wanted, headers=dict(headers), **options)

    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(headers=headers),
        "model": client.get_model_metadata("identity-FP32", headers=headers),
        "model_ready": client.is_model_ready("identity-FP32", headers=headers),
        "unknown_ready": client.is_model_ready("nothing", headers=headers),
        "types": {},
    }
    for name, values in VALUES.items():
        for as_bytes in (True, False):
            if name == "BF16" and not as_bytes:
                continue  # tritonclient refuses: it has no way to say BF16 in JSON
            result = infer(f"identity-{name}", {"given": values}, as_bytes, ["same"])
            found["types"][f"{name} {'binary' if as_bytes else 'JSON'}"] = {
                "same": same(values, result.as_numpy("same")),
                "bytes": packed(values),
                **result.get_response()["parameters"],
            }
    digest = found["model"]["versions"][0]
    result = infer("pair", PAIR, True, request_id="number 7")
    found["pair"] = {
        "same": [same(PAIR["a"], result.as_numpy("a_same")), same(PAIR["b"], result.as_numpy("b_same"))],
        "id": result.get_response()["id"],
    }
    values = {"given": VALUES["FP32"]}
    result = infer("identity-FP32", values, True, model_version=digest)
    found["version"] = result.get_response()["model_version"]
    wrong = {
        "version": lambda: infer("identity-FP32", values, True, model_version="1"),
        "datatype": lambda: infer("identity-INT8", values, True),
        "output": lambda: infer("identity-FP32", values, True, ["nothing"]),
        "sequence": lambda: infer("identity-FP32", values, True, sequence_id=3),
        "gzip": lambda: infer("identity-FP32", values, True, request_compression_algorithm="gzip"),
        "profile": lambda: infer("identity-FP32", values, True, parameters={"profile": "fast"}),
    }
    found["wrong"] = {}
    for name, call in wrong.items():
        try:
            call()
        except InferenceServerException as error:
            found["wrong"][name] = [error.status(), error.message()]
    files = np.array([b"import os\n\nprint(os.getcwd())\n" * 20, b"\xff\xfe\x00" * 100], object)
    result = infer("magika", {"input": files}, True, parameters={"profile": "throughput"})
    found["magika"] = {
        "label": [each.decode() for each in result.as_numpy("label")],
        "scores": result.as_numpy("score").tolist(),
        "bytes": packed(files),
        **result.get_response()["parameters"],
    }
    client.close()
    return found


def triton_type(values: Any) -> str:
    return str(triton._infer_input.np_to_triton_dtype(values.dtype))


async def try_kserve(url: str, certificate: str, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    context = ssl.create_default_context(cafile=certificate)
    async with InferenceRESTClient(RESTConfig(protocol="v2", verify=context)) as client:
        found: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "identity-FP32", headers=headers),
            "unknown_ready": await client.is_model_ready(url, "nothing", headers=headers),
            "types": {},
        }
        for name, values in VALUES.items():
            if name == "BF16":
                continue  # kserve's client has no BF16
            for as_bytes in (True, False):
                if name == "FP16" and not as_bytes:
                    continue  # it sends FP16 as bytes alone
                given = InferInput("given", list(values.shape), name)
                given.set_data_from_numpy(values, binary_data=as_bytes)
                outputs = [RequestedOutput("same", {"binary_data": as_bytes})]
                model = f"identity-{name}"
                request = InferRequest(model, [given], request_id="7", request_outputs=outputs)
                answer = await client.infer(url, request, model_name=model, headers=dict(headers))
                found["types"][f"{name} {'binary' if as_bytes else 'JSON'}"] = {
                    "same": same(values, answer.outputs[0].as_numpy()),
                    "bytes": packed(values),
                    **answer.parameters,
                }
    return found


if __name__ == "__main__":
    arguments = sys.argv[1:]
    print(json.dumps({"triton": try_triton(*arguments), "kserve": asyncio.run(try_kserve(*arguments))}))
