# SPDX-License-Identifier: MIT
"""What every request passes: limits, who may ask, time limits; and on its way out, log and figures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser

from pynymph.errors import NymphError
from pynymph.service.credentials import Doorkeeper
from pynymph.service.log import log
from pynymph.service.metrics import HTTP_SECONDS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pynymph.service.settings import Settings

COOKIE = "__Host-nymphd"
_LOGIN = Path(__file__).with_name("static") / "login"  # what the page that asks for the token is made of
OPEN_TO_ALL = frozenset(
    {"/healthz", "/login", "/session"}
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
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "WS"})
_LARGEST_OF_STRANGERS = 4096  # a token, say
_BODIES_AT_A_TIME = 16  # of the largest size: more than these bytes are not held


class Refused(Exception):
    """The request ends here. is_sending: though the client goes on with its body."""

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
    """Counts what each client does, and says when it is too much."""

    def __init__(self, rate: str) -> None:
        self._rate = parse(rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def check(self, client: str) -> None:
        """Counts one more; raises Refused, 429, if that is over the limit."""
        if not self._limiter.hit(self._rate, client):
            ends, _ = self._limiter.get_window_stats(self._rate, client)
            wait = max(1, round(ends - time.time()))
            raise Refused(429, f"too many requests; try again in {wait} s", {"Retry-After": str(wait)})


class Gate:
    """The outermost ASGI application; `app` is what answers."""

    def __init__(self, app: ASGIApp, settings: Settings, doorkeeper: Doorkeeper) -> None:
        self._app = app
        self._settings = settings
        self._doorkeeper = doorkeeper
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._requests = Limiter(settings.rate_limit)
        self._wrong_tokens = Limiter(settings.login_limit)
        self._largest_body = settings.max_input_bytes * 4 // 3 + 4096
        self._held_bytes = 0  # of bodies, in all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"nymphd does not speak {scope['type']}")
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        answer = _Answer(scope, send, request_id, self._settings.body_timeout_s)
        held = 0
        try:
            self._check(scope, headers)
            if scope["type"] == "http":
                largest = _LARGEST_OF_STRANGERS if scope["path"] in OPEN_TO_ALL else self._largest_body
                body = await self._read_body(headers, receive, largest)
                held = len(body)
                receive = _replay(body, receive)
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
            self._tell(scope, answer.status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or _without_port(host).lower() not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            raise Refused(400, f"this Host is not served; say {names}, or allow it (allowed_hosts)")
        client = client_of(scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        has_token = scheme.lower() == "bearer" and self._doorkeeper.knows_token(token.strip())
        known = has_token or self._doorkeeper.knows_session(session_of(headers))
        # Counted apart, so that strangers on the same machine do not use up what others may do.
        self._requests.check(client if known else f"{client}, a stranger")
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

    def check_token(self, client: str, token: str) -> None:
        """Raises Refused, 401 or 429, unless it is the token: that is good whatever went before."""
        if not self._doorkeeper.knows_token(token.strip()):
            self._wrong_tokens.check(client)
            raise Refused(401, "this is not the token", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, headers: Headers, receive: Receive, largest: int) -> bytes:
        """All of it, before anything is done about it: slow and large ones end here. Counts it as held."""
        declared = headers.get("content-length", "0")
        end = {"Connection": "close"}
        too_large = f"the body is larger than {largest} bytes"
        if not declared.isdecimal() or int(declared) > largest:
            # Who asked whether to send it will not.
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

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        method = scope.get("method", "WS")
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
    """The way out: headers for all, a time limit for clients that do not read, and what was answered."""

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
        """Take what the client still sends, for a while, and forget it.

        Closed before, the connection would be reset, and the answer be lost: browsers read it only after they
        have sent all.
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
    return given if given and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(8)


def session_of(headers: Headers) -> str:
    """What the client's cookie says."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def client_of(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "unknown"


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)


class Turns:
    """So many at a time, and the others are told to come again: `with turns:`."""

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
