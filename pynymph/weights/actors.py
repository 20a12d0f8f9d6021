# SPDX-License-Identifier: MIT
"""Comparison of the replicas of a model that Ray actors hold, on one host or on many."""

from __future__ import annotations

import errno
import functools
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from pynymph.errors import ArgumentError, NymphError
from pynymph.weights.live import digests_as_found, nodes_of, state_of
from pynymph.weights.ranks import RanksReport, difference, same_layout


def compare_actors(
    actors: Sequence[Any], model: str | Callable[[Any], Any], *, timeout: float | None = None
) -> RanksReport:
    """Compare the tensors of a model in Ray actors, without sending them.

    The actors send 32 bytes a tensor, made by the device that has it. If some differ, they also send the
    nodes that say where. The call comes in the queue of each actor, so that an actor that is busy answers
    late. pynymph has to be installed where the actors run, and has the extra `pynymph[ray]` here.

    Args:
        actors: handles of actors. Each must hold the same slice of the model.
        model: what an actor has: the path of an attribute, such as "worker.model", or a function that gets
            the actor's object. It has to be a torch module, or tensors by name.
        timeout: seconds to wait for all actors; None waits without end.

    Returns:
        A RanksReport. Its ranks are the places of the actors in `actors`.

    Raises:
        ArgumentError: EINVAL, there are less than two actors, one has no such model, or they have other
            names, dtypes or shapes; the message names the actors.
        NymphError: ENOSYS, Ray is not installed; ETIMEDOUT, an actor did not answer in time; EIO, an actor
            died or failed, and the message says why.
    """
    if len(actors) < 2:
        raise ArgumentError(errno.EINVAL, f"there is nothing to compare {len(actors)} actors with; give two")
    began = time.monotonic()
    deadline = None if timeout is None else began + timeout
    ranks = tuple(range(len(actors)))
    found = _ask(actors, functools.partial(_digests, model), deadline)
    same_layout(ranks, [layout for layout, _ in found], "actors")
    layout = found[0][0]
    names = sorted(layout)
    different = [name for name in names if len({digests[name] for _, digests in found}) > 1]
    differences = []
    if different:
        trees = _ask(actors, functools.partial(_nodes, model, tuple(different)), deadline)
        differences = [
            difference(name, layout[name][2], ranks, [each[name] for each in trees]) for name in different
        ]
    nbytes = sum(each for _, _, each in layout.values())
    return RanksReport(ranks, len(names), nbytes, time.monotonic() - began, tuple(differences))


Layout = dict[str, tuple[str, tuple[int, ...], int]]
"""By name of a tensor: dtype, shape, and number of bytes."""


def _digests(model: str | Callable[[Any], Any], actor: Any) -> tuple[Layout, dict[str, bytes]]:
    """Make the digests of an actor's tensors, in the actor."""
    live, made = digests_as_found(state_of(_model_of(model, actor)))
    return {name: (each.dtype, each.shape, each.nbytes) for name, each in live.items()}, made


def _nodes(model: str | Callable[[Any], Any], names: tuple[str, ...], actor: Any) -> dict[str, bytes]:
    """Make the nodes of some of an actor's tensors, in the actor."""
    live = dict(state_of(_model_of(model, actor)))
    return {name: nodes_of(live[name]) for name in names}


def _model_of(model: str | Callable[[Any], Any], actor: Any) -> Any:
    if not isinstance(model, str):
        return model(actor)
    found = actor
    for part in model.split("."):
        if not hasattr(found, part):
            message = f"a {type(actor).__qualname__} has no {model}; give the path of its model"
            raise ArgumentError(errno.EINVAL, message)
        found = getattr(found, part)
    return found


def _ask(actors: Sequence[Any], function: Callable[[Any], Any], deadline: float | None) -> list[Any]:
    """Run a function in all actors. Returns what it returned in each."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        message = f"ray is not installed: {error}; install it: pip install 'pynymph[ray]'"
        raise NymphError(errno.ENOSYS, message) from error
    asked = [actor.__ray_call__.remote(function) for actor in actors]
    answers = []
    for i, each in enumerate(asked):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            answers.append(ray.get(each, timeout=left))
        except ray.exceptions.GetTimeoutError:
            message = f"actor {i} did not answer in time; look whether it is busy, or give more"
            raise NymphError(errno.ETIMEDOUT, message) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, NymphError):
                raise type(cause)(cause.errno or errno.EIO, f"actor {i}: {cause.strerror}") from error
            raise NymphError(errno.EIO, f"actor {i} failed: {type(cause).__qualname__}: {cause}") from error
        except ray.exceptions.RayError as error:
            why = next(iter(str(error).splitlines()), type(error).__qualname__)
            message = f"actor {i} is gone: {why}; leave it out, or start it again"
            raise NymphError(errno.EIO, message) from error
    return answers
