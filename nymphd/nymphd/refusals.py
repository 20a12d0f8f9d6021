# SPDX-License-Identifier: MIT
"""Errors of inferences for clients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from nymphd.answers import Error
from nymphd.gate import Refused
from nymphd.models import Models, UnknownModel
from nymphd.network import InferenceTimeout, ModelBusy, ModelFailed, ModelRefused
from nymphd.tensors import BadInput
from pynymph import NymphError

STATUSES = {
    404: "there is no such model",
    409: "the model is refused",
    413: "the input is too large",
    415: "the Content-Type is missing, or another one",
    422: "the request is not as it should be",
    500: "the model failed at this input",
    503: "no engine could carry the input, or late runs of the model have not ended",
    504: "the model took too long",
}


_RETRY_AFTER = {
    "Retry-After": {"description": "seconds until it is worth trying again", "schema": {"type": "integer"}}
}


def described(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return errors by status for FastAPI's `responses`."""
    found: dict[int | str, dict[str, Any]] = {}
    for status, what in statuses.items():
        found[status] = {"model": Error, "description": what}
        if status in (429, 503, 504):
            found[status]["headers"] = _RETRY_AFTER
    return found


@contextlib.contextmanager
def refusals(models: Models) -> Iterator[None]:
    """Raise Refused, with a status and the reason, for every error of Inference."""
    try:
        yield
    except UnknownModel:
        there = ", ".join(models.names()) or "none"
        raise Refused(404, f"there is no model of that name; there are: {there}") from None
    except ModelBusy as busy:
        raise Refused(503, str(busy), {"Retry-After": "5"}) from None
    except ModelRefused as refused:
        raise Refused(409, str(refused)) from None
    except BadInput as error:
        raise Refused(422, str(error)) from None
    except ModelFailed as error:
        raise Refused(500, str(error)) from None
    except InferenceTimeout as error:
        raise Refused(504, str(error), {"Retry-After": "1"}) from None
    except NymphError as error:
        message = f"no engine could carry the input: {error.strerror or error}"
        raise Refused(503, message, {"Retry-After": "5"}) from None
