# SPDX-License-Identifier: MIT
"""The paths of nymphd."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Query, Request, Response, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

import pynymph
from pynymph import NymphError
from pynymph.service import answers, metrics
from pynymph.service.credentials import SESSION_SECONDS
from pynymph.service.gate import COOKIE, Gate, Refused, Turns, client_of, error_body, session_of
from pynymph.service.models import ModelRefused, UnknownModel
from pynymph.service.nymphd import Nymphd

_TOKEN = "what is in the file token of nymphd's state folder; the gate looks at it, before anything here"

PAGES = Path(__file__).with_name("static")


def _errors(described: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": answers.Error, "description": what} for status, what in described.items()}


_ERRORS = _errors(
    {
        400: "the Host is not served, or the request is malformed",
        401: "no token, or a wrong one",
        403: "a page of another origin asks",
        408: "the body came too slowly",
        413: "the body is too large",
        429: "too much at once; Retry-After says when to come again",
    }
)


def make_app(nymphd: Nymphd) -> Gate:
    """All of it, behind the gate."""
    app = FastAPIOffline(
        redoc_url=None,
        title="nymphd",
        version=pynymph.__version__,
        description="The fabric as a service. docs/nymphd.md of the project has the meanings.",
        responses=_ERRORS,
    )
    gate = Gate(app, nymphd.settings, nymphd.doorkeeper)
    _add_errors(app)
    _add_pages(app, nymphd, gate)
    _add_answers(app, nymphd)
    return gate


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse(error_body(error.error), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of all routes there, not of the first alone
            headers["Allow"] = ", ".join(sorted(_methods(app, request.scope["path"])))
        return JSONResponse(error_body(str(error.detail)), error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return JSONResponse(error_body("; ".join(wrong)), 422)


    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # it is raised again, and logged
        return JSONResponse(error_body("nymphd failed at this; its log says more, by the request id"), 500)


def _methods(app: FastAPI, path: str) -> set[str]:
    return {
        method
        for route in app.routes
        if isinstance(route, Route) and route.path == path
        for method in route.methods or ()
    }


def _add_pages(app: FastAPI, nymphd: Nymphd, gate: Gate) -> None:
    app.mount("/static", StaticFiles(directory=PAGES), name="static")

    @app.get("/", include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @app.get("/login", include_in_schema=False)
    async def login() -> FileResponse:
        return FileResponse(PAGES / "login.html")

    @app.post(
        "/session", status_code=303, response_class=RedirectResponse, responses=_errors({422: "no token"})
    )
    async def open_session(request: Request, token: Annotated[str, Form(min_length=1)]) -> Response:
        """Exchange the token for a cookie; goes on to the dashboard."""
        gate.check_token(client_of(request.scope), token)
        answer = RedirectResponse("/", 303)
        session = nymphd.doorkeeper.open_session()
        answer.set_cookie(COOKIE, session, SESSION_SECONDS, secure=True, httponly=True, samesite="strict")
        return answer

    @app.delete("/session", status_code=204)
    async def end_session(request: Request) -> Response:
        """The cookie is worth nothing any more."""
        nymphd.doorkeeper.end_session(session_of(request.headers))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
        return answer


def _add_answers(app: FastAPI, nymphd: Nymphd) -> None:
    inferences = Turns(nymphd.settings.max_inferences, "inferences")
    verifications = Turns(nymphd.settings.max_verifications, "verifications")

    @app.get("/healthz")
    async def healthz() -> answers.Health:
        """Whether the process answers; needs no token."""
        return answers.Health(status="ok")

    unready = {"model": answers.Readiness, "description": "something is not ready"}

    router = APIRouter(dependencies=[Security(HTTPBearer(auto_error=False, description=_TOKEN))])

    @router.get("/readyz", responses={503: unready})
    async def readyz(response: Response) -> answers.Readiness:
        """Whether the ring and the models can be used."""
        found = nymphd.readiness()
        response.status_code = 200 if found.ready else 503
        return found

    @router.get("/status", response_model=answers.Status)
    async def status() -> dict[str, Any]:
        """What there is, and what it does."""
        return await nymphd.watch.fresh_status()

    wrong_size = _errors({422: "no such number of bytes"})

    @router.get("/fabric/verify", response_model=answers.Verification, responses=wrong_size)
    async def verify(bytes: Annotated[int, Query(ge=1, le=16 << 20)] = 64 << 10) -> dict[str, Any]:
        """Have every engine prove itself now, by so many random bytes."""
        with verifications:
            await nymphd.watch.fresh_status()  # so that engines that came just now are among them
            return await nymphd.engines.verify(bytes)

    @router.get("/models")
    async def models() -> answers.Models:
        """The models there are, and whether they can be used."""
        states = [answers.ModelState(**state) for state in nymphd.models.states()]
        return answers.Models(engine=nymphd.carrier.engine, models=states)

    failures = _errors(
        {
            404: "there is no such model",
            409: "the model is refused",
            413: "the input is too large",
            422: "the request is not as it should be",
            503: "no engine could carry the input",
        }
    )

    @router.post("/infer", response_model=answers.Inference, responses=failures)
    async def infer(wanted: answers.InferRequest) -> dict[str, Any]:
        """Bring the input through the ring, and run the model on what arrived."""
        largest = nymphd.settings.max_input_bytes
        if len(wanted.input) > largest:
            raise Refused(413, f"the input has {len(wanted.input)} bytes, and {largest} are the most")
        if not wanted.input:
            raise Refused(422, "the input is empty: there is nothing to carry")
        try:
            with inferences:
                return await nymphd.inference.infer(wanted.model, wanted.input, wanted.profile)
        except UnknownModel:
            there = ", ".join(nymphd.models.names()) or "none"
            raise Refused(404, f"there is no model of that name; there are: {there}") from None
        except ModelRefused as refused:
            raise Refused(409, str(refused)) from None
        except NymphError as error:
            message = f"no engine could carry the input: {error.strerror or error}"
            raise Refused(503, message, {"Retry-After": "5"}) from None

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def figures() -> Response:
        """Prometheus' text format."""
        metrics.note_status(await nymphd.watch.fresh_status())
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)

    @app.websocket("/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        with nymphd.events.listen() as listener, contextlib.suppress(WebSocketDisconnect, TimeoutError):
            engine = nymphd.carrier.engine
            session = session_of(socket.headers)
            by_session = nymphd.doorkeeper.knows_session(session)
            await socket.send_json(nymphd.events.make("hello", engine=engine, recent=nymphd.events.recent))
            left = asyncio.create_task(_until_it_leaves(socket))
            try:
                while not left.done() and not listener.lost:
                    getting = asyncio.create_task(listener.get())
                    await asyncio.wait([getting, left], return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        break
                    if by_session and not nymphd.doorkeeper.knows_session(session):
                        await socket.close(1008, "logged out")
                        break
                    await socket.send_json(getting.result())
                if listener.lost:
                    await socket.close(1013, "too slow")
            finally:
                left.cancel()


async def _until_it_leaves(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
