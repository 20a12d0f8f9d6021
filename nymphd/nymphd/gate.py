# SPDX-License-Identifier: MIT
"""The gate that every request passes: limits, authorization and time limits, then log and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from limits import parse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser

from nymphd.credentials import Doorkeeper
from nymphd.log import log
from nymphd.meters import HTTP_SECONDS
from pynymph.errors import NymphError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from nymphd.settings import Settings

COOKIE = "__Host-nymphd"
_LOGIN = Path(__file__).with_name("static") / "login"  # what the page that asks for the token is made of
PROBES = frozenset({"/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_TO_ALL = frozenset(
    {*PROBES, "/login", "/session"}
    | {f"/static/login/{path.relative_to(_LOGIN).as_posix()}" for path in _LOGIN.rglob("*")}
)

_PAGES = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_DOCS = f"{_PAGES}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})
_LARGEST_OF_STRANGERS = 4096  # a token, say
_PROCESS, _COUNTER = secrets.token_hex(4), itertools.count()  # of which request ids are made
_BODIES_AT_A_TIME = 16  # of the largest size: more than these bytes are not held


class Refused(Exception):
    """The request is refused. `is_sending`: the client may still send its body."""

    def __init__(
        self, status: int, error: str, headers: Mapping[str, str] | None = None, *, is_sending: bool = False
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.headers = status, error, dict(headers or {})
        self.is_sending = is_sending


def error_body(error: str) -> dict[str, str]:
    known: dict[str, Any] = structlog.contextvars.get_contextvars()
    return {"error": error, "request_id": str(known.get("request_id", ""))}


class Limiter:
    """Count the requests of each client, and refuse those over the limit."""

    def __init__(self, rate: str) -> None:
        limit = parse(rate)
        self._most, self._window_s = limit.amount, limit.get_expiry()
        self._window = 0.0
        self._counts: dict[str, int] = {}

    def check(self, client: str) -> None:
        """Count a request. Raises Refused, 429, if the client is over the limit."""
        now = time.monotonic()
        if now // self._window_s != self._window:
            self._window = now // self._window_s
            self._counts.clear()
        count = self._counts[client] = self._counts.get(client, 0) + 1
        if count > self._most:
            wait = max(1, round((self._window + 1) * self._window_s - now))
            raise Refused(429, f"too many requests; try again in {wait} s", {"Retry-After": str(wait)})


class Gate:
    """Check requests before `app`, the ASGI application that answers them."""

    def __init__(
        self, app: ASGIApp, settings: Settings, doorkeeper: Doorkeeper, names: frozenset[str]
    ) -> None:
        self.names = names
        """What a Host header may say, without port; *.example.org is any one name there."""
        self.welcome: Callable[[tuple[str, int]], None] = lambda client: None
        """Called with the address of a client that had the token or a cookie."""
        self._app = app
        self._settings = settings
        self._doorkeeper = doorkeeper
        self._requests = Limiter(settings.rate_limit)
        self._wrong_tokens = Limiter(settings.login_limit)
        self._largest_body = settings.max_input_bytes * 4 // 3 + 4096
        self._held_bytes = 0  # of bodies, in all
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"nymphd does not speak {scope['type']}")
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        method = scope.get("method", "WS")
        answer = _Answer(scope, send, request_id, self._settings.body_timeout_s)
        held = 0
        try:
            self._check(scope, headers)
            if scope["type"] == "http":
                if scope["method"] == "HEAD":  # uvicorn leaves out the body
                    scope = {**scope, "method": "GET"}
                largest = _LARGEST_OF_STRANGERS if scope["path"] in OPEN_TO_ALL else self._largest_body
                body = await self._read_body(headers, receive, largest)
                held = len(body)
                receive = _replay(body, receive)
                if scope["method"] == "GET" and scope["path"] not in PROBES:
                    await self._pace.turn(scope["state"]["known"])
            await self._app(scope, receive, answer.send)
        except Refused as refused:
            await answer.refuse(refused, receive)
        except TimeoutError as error:
            if isinstance(error, NymphError):  # the driver's, and no client's
                log.exception("a request failed")
            else:
                log.warning("the client did not read the answer in time")
        except Exception:
            log.exception("a request failed")
            failed = Refused(500, "nymphd failed at this; its log says more, by the request id")
            await answer.refuse(failed, receive)
        finally:
            self._held_bytes -= held
            self._tell(scope, method, answer.status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        is_served = len(headers.getlist("host")) == 1 and self._is_name(_without_port(host).lower())
        # A kubelet sends the pod's address, which no setting has; a probe without a token gives no detail.
        if not is_served and not (scope["type"] == "http" and scope["path"] in PROBES):
            names = ", ".join(sorted(self.names))
            raise Refused(400, f"this Host is not served; say {names}, or allow it (allowed_hosts)")
        client = client_of(scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        has_token = scheme.lower() == "bearer" and self._doorkeeper.knows_token(token.strip())
        known = has_token or self._doorkeeper.knows_session(session_of(headers))
        if known and scope.get("client"):
            self.welcome(scope["client"])
        scope.setdefault("state", {})["known"] = known
        # Counted apart, so that strangers on the same machine do not use up the limit of others.
        self._requests.check(client if known else f"{client}, a stranger")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Refused(
                400, "both Content-Length and Transfer-Encoding: say one of them", {"Connection": "close"}
            )
        if known and not has_token and not _is_from_here(scope, headers):
            raise Refused(403, "pages of other origins may not ask (Sec-Fetch-Site); open nymphd's own")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"https://{host.lower()}":
            raise Refused(403, "pages of other origins may not ask")
        if known or scope["path"] in OPEN_TO_ALL:
            return
        if scheme.lower() == "bearer":
            self.check_token(client, token)
        else:
            if scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
                raise Refused(303, "log in first", {"Location": "/login"})
            message = "say who you are: Authorization: Bearer and the token, or log in at /login"
            raise Refused(401, message, {"WWW-Authenticate": "Bearer"})

    def _is_name(self, host: str) -> bool:
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names

    def check_token(self, client: str, token: str) -> None:
        """Raise Refused, 401 or 429, unless `token` is the token, which no limit refuses."""
        if not self._doorkeeper.knows_token(token.strip()):
            self._wrong_tokens.check(client)
            raise Refused(401, "this is not the token", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, headers: Headers, receive: Receive, largest: int) -> bytes:
        """Read the whole body, within limits of size and time. Counts it as held memory."""
        declared = headers.get("content-length", "0")
        end = {"Connection": "close"}
        too_large = f"the body is larger than {largest} bytes"
        if not declared.isdecimal() or int(declared) > largest:
            # A client that asked whether to send the body does not send it.
            raise Refused(413, too_large, end, is_sending="expect" not in headers)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the client went away")
                    part, more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(part) > largest:
                        raise Refused(413, too_large, end, is_sending=more)
                    if self._held_bytes + len(part) > _BODIES_AT_A_TIME * self._largest_body:
                        raise Refused(429, "too much is being sent at once; try again", {"Retry-After": "1"})
                    body += part
                    self._held_bytes += len(part)
                    if not more:
                        return bytes(body)
        except BaseException as error:
            self._held_bytes -= len(body)
            if isinstance(error, TimeoutError):
                seconds = self._settings.body_timeout_s
                raise Refused(408, f"the body did not come within {seconds:g} s", end) from None
            raise

    def _tell(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        if scope["type"] == "http":  # a WebSocket has no time limit
            path = getattr(scope.get("route"), "path", "other")
            HTTP_SECONDS.labels(path, method if method in _METHODS else "other", status).observe(seconds)
        log.info(
            "request",
            method=method,
            path=scope["path"][:200],
            status=status,
            duration_ms=round(seconds * 1000, 3),
            client=client_of(scope),
        )


class _Answer:
    """Send an answer: add headers, limit the time of clients that do not read, and note the status."""

    def __init__(self, scope: Scope, send: Send, request_id: str, timeout_s: float) -> None:
        self._scope, self._send = scope, send
        self._request_id = request_id
        self._timeout_s = timeout_s
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            is_docs = self._scope["path"] == "/docs"
            headers.setdefault("Content-Security-Policy", _DOCS if is_docs else _PAGES)
            headers["X-Request-ID"] = self._request_id
        elif message["type"] == "websocket.accept":
            self.status = 101
        async with asyncio.timeout(self._timeout_s):
            await self._send(message)

    async def refuse(self, refused: Refused, receive: Receive) -> None:
        if self.status:
            return  # too late to say so
        if self._scope["type"] == "websocket":
            self.status = 403
            await self._send({"type": "websocket.close", "code": 1008, "reason": refused.error})
            return
        body = json.dumps(error_body(refused.error)).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        is_head = self._scope["method"] == "HEAD" or refused.status == HTTPStatus.NO_CONTENT
        body = b"" if is_head else body
        await self.send({"type": "http.response.body", "body": body, "more_body": refused.is_sending})
        if refused.is_sending:
            await self._outlast(receive)
            await self.send({"type": "http.response.body"})

    async def _outlast(self, receive: Receive) -> None:
        """Drain what the client still sends, for a limited time.

        If the connection were closed before, it would be reset and the answer lost: browsers read it only
        after they have sent everything.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while (await receive()).get("more_body", False):
                    pass


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _request_id(given: str | None) -> str:
    if given and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given):
        return given
    return f"{_PROCESS}{next(_COUNTER) & 0xFFFFFFFF:08x}"


def session_of(headers: Headers) -> str:
    """Return the session of the client's cookie."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def client_of(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "unknown"


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)


def _is_from_here(scope: Scope, headers: Headers) -> bool:
    """Tell whether a page of nymphd made the request: browsers send the cookie for every port of the host.

    A link of another site may lead to the dashboard.
    """
    site = headers.get("sec-fetch-site", "none")
    is_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
    return site in ("same-origin", "none") or (is_link and headers.get("sec-fetch-dest") == "document")


class Pace:
    """Let a few requests continue in each turn of the loop, so that other work comes between them.

    Requests with and without the token take turns.
    """

    _AT_A_TIME = 4

    def __init__(self) -> None:
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque())
        self._is_moving = False

    async def turn(self, known: bool) -> None:
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[None] = loop.create_future()
        self._waiting[known].append(mine)
        if not self._is_moving:
            self._is_moving = True
            loop.call_soon(self._move)
        await mine

    def _move(self) -> None:
        left = self._AT_A_TIME
        strangers, known = self._waiting
        while left > 0 and (strangers or known):
            for queue in (known, strangers):
                if queue and not (mine := queue.popleft()).done():
                    mine.set_result(None)
                    left -= 1
        self._is_moving = bool(strangers or known)
        if self._is_moving:
            asyncio.get_running_loop().call_soon(self._move)


class Turns:
    """Limit the number of requests at a time, and refuse the others: `with turns:`."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self.taken = 0

    def __enter__(self) -> None:
        if self.taken >= self._most:
            message = f"{self.taken} {self._what} are under way, and there can be no more; try again"
            raise Refused(429, message, {"Retry-After": "1"})
        self.taken += 1

    def __exit__(self, *exc: object) -> None:
        self.taken -= 1
