# SPDX-License-Identifier: MIT
"""What an orchestrator asks: without a token, by the pod's address, and with no detail in the answer."""

import asyncio
from pathlib import Path

import httpx
import pytest
from nymphd.app import make_app
from nymphd.credentials import Doorkeeper
from nymphd.daemon import Nymphd
from nymphd.settings import Settings
from nymphd_process import Service

POD = {"Host": "10.244.1.17:8443", "User-Agent": "kube-probe/1.34", "Connection": "close"}
ANSWERS = {
    "/livez": {"status": "ok"},
    "/healthz": {"status": "ok"},
    "/readyz": {"ready": True},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
}


@pytest.mark.parametrize("path", ANSWERS)
def test_probes_need_no_token_and_no_host_name(service: Service, path: str) -> None:
    with service.client(headers=POD) as client:
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, ANSWERS[path])
        assert client.get(f"{path}/").status_code in (400, 401), "the exception is of these paths alone"
        assert client.get("/status").status_code == 400


def test_only_the_token_shows_why_it_is_not_ready(service: Service, tmp_path: Path) -> None:
    """Of one that has not looked for its models yet, which a running one does at once."""
    with service.client() as client:
        assert set(client.get("/readyz").json()) == {"engine", "ready", "checks"}

    async def ask() -> None:
        nymphd = Nymphd(Settings(state_dir=tmp_path, device="model:"), Doorkeeper("x" * 43))
        try:
            way = httpx.ASGITransport(make_app(nymphd))
            async with httpx.AsyncClient(transport=way, base_url="https://localhost", headers=POD) as client:
                for path in ("/readyz", "/v2/health/ready"):
                    answer = await client.get(path)
                    assert (answer.status_code, answer.json()) == (503, {"ready": False})
                assert (await client.get("/livez")).status_code == 200
                found = await client.get("/readyz", headers={"Authorization": f"Bearer {'x' * 43}"})
                assert (found.status_code, found.json()["checks"]["models"]["ok"]) == (503, False)
                await nymphd.models.look()
                assert (await client.get("/readyz")).status_code == 200
        finally:
            nymphd.close()

    asyncio.run(ask())
