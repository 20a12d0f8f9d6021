# SPDX-License-Identifier: MIT
"""The application of nymphd: its paths."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Form, Query, Request, Response, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import APIKeyCookie, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from nymphd import __version__, answers, open_inference
from nymphd.carrier import Wanted
from nymphd.credentials import SESSION_SECONDS
from nymphd.daemon import Nymphd
from nymphd.gate import COOKIE, Gate, Refused, Turns, client_of, error_body, session_of
from nymphd.parsing import content_type_of, read_model
from nymphd.refusals import STATUSES, described, refusals
from pynymph import NymphError

# The gate looks at both, before anything here.
_TOKEN = HTTPBearer(
    auto_error=False, scheme_name="token", description="what is in the file token of nymphd's state folder"
)
_SESSION = APIKeyCookie(
    name=COOKIE, auto_error=False, scheme_name="session", description="of POST /session, for browsers"
)
_TAGS = {
    "fabric": "The driver, its engines and rings.",
    "inference": "Models, and what they say of an input.",
    "operation": "Probes and metrics, for orchestrators.",
    "session": "A browser's way to come in.",
    "open-inference-protocol": "The Open Inference Protocol, version 2.",
}
_BYTES = "application/octet-stream"
ModelOfBytes = Annotated[
    str, Query(min_length=1, max_length=64, description=f"a folder's name; for {_BYTES}, as JSON has its own")
]
WantsEvidence = Annotated[bool, Query(description="whether to make evidence of the copy")]
NonceOfEvidence = Annotated[
    answers.Nonce | None,
    Query(description="make evidence, and have the driver attest it in answer to this nonce"),
]
_NO_KEY = "a nonce was given, and the driver has no key to attest with"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

PAGES = Path(__file__).with_name("static")


_ERRORS = described(
    {
        400: "the Host is not served, or the request is malformed",
        401: "no token, or a wrong one",
        403: "a page of another origin asks",
        408: "the body came too slowly",
        413: "the body is too large",
        422: "the request is not as it should be",
        429: "too much at once; Retry-After says when to come again",
    }
)


def make_app(nymphd: Nymphd, names: frozenset[str] = _LOOPBACK) -> Gate:
    """Make the application, behind the gate."""
    app = FastAPIOffline(
        redoc_url=None,
        title="nymphd",
        version=__version__,
        description="The fabric as a service. docs/reference/nymphd.md of the project has the meanings.",
        responses=_ERRORS,
        servers=[{"url": "/", "description": "where this document is from"}],
        openapi_tags=[{"name": name, "description": what} for name, what in _TAGS.items()],
    )
    gate = Gate(app, nymphd.settings, nymphd.doorkeeper, names)
    _add_errors(app)
    _add_answers(app, nymphd)  # first, as these are asked for most often
    _add_pages(app, nymphd, gate)
    _add_bodies(app)
    return gate


def _add_bodies(app: FastAPI) -> None:
    """Add bodies to the OpenAPI document that FastAPI does not read, because it reads without limits."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemas = document["components"]["schemas"]
        for kind in (answers.InferRequest, open_inference.InferenceRequest):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {}) | {kind.__name__: schema}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse(error_body(error.error), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        headers, said = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(app, request.scope["path"])))
            said = f"{request.method} can't be done here; {headers['Allow']} can"
        elif error.status_code == 404 and said == "Not Found":
            said = "there is no such path; /openapi.json has them all"
        return JSONResponse(error_body(said), error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}"[:200] for each in error.errors()[:5]]
        return JSONResponse(error_body("; ".join(wrong)), 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # it is raised again, and logged
        return JSONResponse(error_body("nymphd failed at this; its log says more, by the request id"), 500)


def _nonce(nymphd: Nymphd, nonce: str | None) -> bytes | None:
    """Return the bytes of a nonce. Raises Refused if nobody can answer it."""
    if nonce is None:
        return None
    try:
        nymphd.carrier.check_attesting()
    except NymphError as error:
        raise Refused(409, error.strerror or str(error)) from None
    return bytes.fromhex(nonce)


def _methods(app: FastAPI, path: str) -> set[str]:
    scope = {"type": "http", "path": path, "root_path": "", "headers": []}
    routes = [route for route in app.routes if not isinstance(route, Mount)]
    found = {
        method
        for method in ("DELETE", "GET", "POST")
        if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in routes)
    }
    found = found or {"GET"}  # of files, which are mounted
    return found | {"HEAD"} if "GET" in found else found


def _add_pages(app: FastAPI, nymphd: Nymphd, gate: Gate) -> None:
    app.mount("/static", StaticFiles(directory=PAGES), name="static")

    @app.get("/", include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @app.get("/login", include_in_schema=False)
    async def login() -> FileResponse:
        return FileResponse(PAGES / "login.html")

    @app.post(
        "/session",
        status_code=303,
        response_class=RedirectResponse,
        operation_id="open_session",
        tags=["session"],
    )
    async def open_session(request: Request, token: Annotated[str, Form(min_length=1)]) -> Response:
        """Exchange the token for a cookie, and redirect to the dashboard."""
        gate.check_token(client_of(request.scope), token)
        answer = RedirectResponse("/", 303)
        session = nymphd.doorkeeper.open_session()
        answer.set_cookie(COOKIE, session, SESSION_SECONDS, secure=True, httponly=True, samesite="strict")
        return answer

    @app.delete("/session", status_code=204, operation_id="end_session", tags=["session"])
    async def end_session(request: Request) -> Response:
        """End the session of the cookie."""
        nymphd.doorkeeper.end_session(session_of(request.headers))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
        return answer


def _add_probes(app: FastAPI, nymphd: Nymphd) -> None:
    """Add the probes of orchestrators. They need no token, and accept any Host header."""

    @app.get("/healthz", operation_id="get_health", tags=["operation"])
    @app.get("/livez", operation_id="get_liveness", tags=["operation"])
    async def healthz() -> answers.Health:
        """Tell whether the process answers."""
        return answers.Health(status="ok")

    unready = "something is not ready"

    @app.get(
        "/readyz",
        operation_id="get_readiness",
        tags=["operation"],
        responses={503: {"model": answers.Readiness, "description": unready}},
        response_model_exclude_unset=True,
    )
    async def readyz(request: Request, response: Response) -> answers.Readiness:
        """Tell whether the ring and the models can be used; with the token, also why not."""
        found = nymphd.readiness()
        response.status_code = 200 if found.ready else 503
        return found if request.state.known else answers.Readiness(ready=found.ready)

    protocol: list[str | Enum] = ["open-inference-protocol"]

    @app.get("/v2/health/live", operation_id="server_live", tags=protocol)
    async def live() -> answers.ServerLive:
        """Tell whether the process answers, by the Open Inference Protocol."""
        return answers.ServerLive(live=True)

    @app.get(
        "/v2/health/ready",
        operation_id="server_ready",
        tags=protocol,
        responses={503: {"model": answers.ServerReady, "description": unready}},
    )
    async def ready(response: Response) -> answers.ServerReady:
        """Tell whether the ring and the models can be used, by the Open Inference Protocol."""
        is_ready = nymphd.readiness().ready
        response.status_code = 200 if is_ready else 503
        return answers.ServerReady(ready=is_ready)


def _add_answers(app: FastAPI, nymphd: Nymphd) -> None:
    inferences = Turns(nymphd.settings.max_inferences, "inferences")
    verifications = Turns(nymphd.settings.max_verifications, "verifications")

    _add_probes(app, nymphd)
    needed = [Security(_TOKEN), Security(_SESSION)]
    router = APIRouter(dependencies=needed)

    @router.get("/status", response_model=answers.Status, operation_id="get_status", tags=["fabric"])
    async def status() -> Response:
        """Get the state of the service, the driver and the engines."""
        return Response(await nymphd.watch.fresh_json(), media_type="application/json")

    @router.get(
        "/fabric/verify",
        response_model=answers.Verification,
        responses=described({409: _NO_KEY}),
        operation_id="verify_fabric",
        tags=["fabric"],
    )
    async def verify(
        bytes: Annotated[int, Query(ge=1, le=16 << 20)] = 64 << 10,
        evidence: WantsEvidence = False,
        nonce: NonceOfEvidence = None,
    ) -> dict[str, Any]:
        """Verify every engine now, with `bytes` random bytes each."""
        answered = _nonce(nymphd, nonce)
        with verifications:
            await nymphd.watch.fresh_status()  # so that engines that came just now are among them
            return await nymphd.engines.verify(bytes, evidence or nonce is not None, answered)

    @router.get("/models", operation_id="list_models", tags=["inference"])
    async def models() -> answers.Models:
        """List the models, and whether they can be used."""
        return answers.Models(engine=nymphd.carrier.engine, models=nymphd.models.states())

    content = {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
        _BYTES: {"schema": {"type": "string", "format": "binary", "minLength": 1}},
    }
    body = {"requestBody": {"required": True, "content": content}}

    @router.post(
        "/infer",
        response_model=answers.Inference,
        responses=described(STATUSES | {409: f"{STATUSES[409]}, or {_NO_KEY}"}),
        openapi_extra=body,
        operation_id="infer",
        tags=["inference"],
    )
    async def infer(
        request: Request,
        model: ModelOfBytes = "magika",
        profile: answers.Profile = "latency",
        evidence: WantsEvidence = False,
        nonce: NonceOfEvidence = None,
    ) -> dict[str, Any]:
        """Copy the input through the ring, and run the model on the bytes that arrived.

        The input is base64 in JSON, or the body itself as application/octet-stream. `model`, `profile`,
        `evidence` and `nonce` in JSON override those of the query.
        """
        data = await request.body()
        if content_type_of(request.headers, "application/json", _BYTES) != _BYTES:
            wanted = await read_model(answers.InferRequest, data)
            model, data = wanted.model, wanted.input
            profile = wanted.profile or profile
            evidence = evidence if wanted.evidence is None else wanted.evidence
            nonce = wanted.nonce or nonce
        largest = nymphd.settings.max_input_bytes
        if len(data) > largest:
            raise Refused(413, f"the input has {len(data)} bytes, and {largest} are the most")
        if not data:
            raise Refused(422, "input: it is empty: there is nothing to carry")
        answered = _nonce(nymphd, nonce)
        asked = evidence or nonce is not None
        proof = Wanted("the input of a request", "", answered) if asked else None
        with inferences, refusals(nymphd.models):
            return await nymphd.inference.infer(model, data, profile, proof)

    text = {"schema": {"type": "string"}}
    formats: dict[str, Any] = {"text/plain": text, "application/openmetrics-text": text}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": formats}},
        operation_id="get_metrics",
        tags=["operation"],
        dependencies=needed,
    )
    async def figures(request: Request) -> Response:
        """Get metrics in Prometheus' text format, or in OpenMetrics if Accept asks for it."""
        await nymphd.watch.fresh_status()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"Content-Type": content_type})

    @router.get(
        "/history",
        response_class=JSONResponse,
        responses={200: {"model": answers.History}},
        operation_id="get_history",
        tags=["fabric"],
    )
    async def history(span: Literal["hour", "day"] = "hour") -> Response:
        """Get the history of the last hour by the second, or of the last day by the minute."""
        return Response(nymphd.watch.history.as_json(span), media_type="application/json")

    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)  # who asks for no version gets the first
    app.include_router(open_inference.make_router(nymphd, inferences), dependencies=needed)

    @app.websocket("/v1/events")
    @app.websocket("/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        session = session_of(socket.headers)
        by_session = nymphd.doorkeeper.knows_session(session)
        with nymphd.events.listen() as listener, contextlib.suppress(WebSocketDisconnect, TimeoutError):
            hello = nymphd.events.hello(nymphd.carrier.engine)
            leaving = asyncio.create_task(_until_it_leaves(socket))
            leaving.add_done_callback(lambda _: listener.leave())
            try:
                await socket.send_text(hello)
                while (event := await listener.get()) is not None:
                    if by_session and not nymphd.doorkeeper.knows_session(session):
                        await socket.close(1008, "logged out")
                        break
                    await socket.send_text(event)
                if listener.lost:
                    await socket.close(1013, "too slow")
            finally:
                leaving.cancel()


async def _until_it_leaves(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
