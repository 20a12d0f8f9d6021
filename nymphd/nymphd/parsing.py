# SPDX-License-Identifier: MIT
"""Parsing of JSON within limits, in a thread, so that no JSON keeps the event loop waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers

from nymphd.gate import Refused
from nymphd.models import wrong

Made = TypeVar("Made", bound=BaseModel)
Result = TypeVar("Result")

# What a body may have of each, in strings too: counted, before anything is made of it.
_MOST = {
    b":": (4096, "keys"),
    b"{": (1024, "objects"),
    b"[": (16384, "lists"),
    b",": (131072, "elements"),
}
_turn = asyncio.Semaphore(1)  # others wait here, and not, with the loop, for the interpreter


def content_type_of(headers: Headers, *wanted: str) -> str:
    """Return the media type of Content-Type, one of `wanted`. Raises Refused, 415, for another."""
    given = headers.get("content-type")
    found = (given or "").partition(";")[0].strip().lower()
    if found not in wanted:
        has = f"Content-Type {given[:64]!r}" if given else "no Content-Type"
        raise Refused(415, f"the request has {has}; say Content-Type: {' or '.join(wanted)}")
    return found


async def read_json(body: bytes) -> Any:
    """Parse `body`. Raises Refused: 413 if it has too many elements, 422 if it is no JSON."""
    for character, (most, what) in _MOST.items():
        if (count := body.count(character)) > most:
            raise Refused(
                413,
                f"the JSON has {count} {what}, or as many {character.decode()!r}, and {most} are the most; "
                "send bulk as bytes (application/octet-stream, or binary tensors)",
            )
    return await beside(_parse, body)


async def read_model(kind: type[Made], body: bytes) -> Made:
    """Parse `body` as a `kind`. Raises Refused as read_json() does, with the fields that are wrong."""
    return await beside(_validate, kind, await read_json(body))


async def beside(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that would block the event loop in a thread, one at a time."""
    async with _turn:
        return await asyncio.to_thread(function, *arguments)


def _parse(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(422, f"the body is no JSON: {error}"[:200]) from None


def _validate(kind: type[Made], found: Any) -> Made:
    if not isinstance(found, dict):
        raise Refused(422, f"the body is a JSON {type(found).__name__}, and has to be an object, {{…}}")
    if surplus := sorted(found.keys() - kind.model_fields.keys()):
        names = ", ".join(f"{name[:32]!r}" for name in surplus[:5]) + (", …" if len(surplus) > 5 else "")
        raise Refused(422, f"there is no field {names}; there are {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise Refused(422, wrong(error)) from None
