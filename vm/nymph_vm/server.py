# SPDX-License-Identifier: MIT
"""The process that a machine of `nymph-vm up` lives in, and how other processes ask something of it."""

import contextlib
import os
import signal
import sys
from multiprocessing.connection import Client, Listener
from typing import Any, NoReturn

from nymph_vm.host import HarnessError
from nymph_vm.machine import Machine
from nymph_vm.state import State

REQUESTS = ("plug", "unplug")  # methods of Machine that take the name of an endpoint


def start(name: str, **machine: Any) -> None:
    """Have a new process boot a machine, and return once it is up. Raises HarnessError.

    machine: arguments of Machine.
    """
    ours, its = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        _serve(name, machine, its)
    os.close(its)
    with open(ours) as answer:
        said = answer.read()
    if said != "ready":
        raise HarnessError(said)


def ask(state: State, request: str, endpoint: str) -> None:
    """Have a machine that is up do one of REQUESTS. Raises HarnessError."""
    try:
        with Client(_address(state), "AF_UNIX") as asking:
            asking.send_bytes(f"{request} {endpoint}".encode())
            error = asking.recv_bytes().decode()
    except (OSError, EOFError):
        message = f"{state.name} takes no requests: machines of `nymph-vm up` do, as long as they run"
        raise HarnessError(message) from None
    if error:
        raise HarnessError(error)


def _address(state: State) -> str:
    return str(state.folder / "requests")


def _serve(name: str, machine: dict[str, Any], answer: int) -> NoReturn:
    """Be the process a machine lives in, until `down`."""
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        with Machine(name, **machine) as running, Listener(_address(running.state), "AF_UNIX") as listener:
            os.write(answer, b"ready")
            os.close(answer)
            while True:
                with contextlib.suppress(OSError, EOFError), listener.accept() as asking:
                    request, _, endpoint = asking.recv_bytes().decode(errors="replace").partition(" ")
                    asking.send_bytes(_obey(running, request, endpoint).encode())
    except Exception as error:
        os.write(answer, (str(error) or repr(error)).encode())
    finally:
        os._exit(0)


def _obey(machine: Machine, request: str, endpoint: str) -> str:
    """Returns what went wrong, if anything did."""
    try:
        if request not in REQUESTS:
            raise HarnessError(f"no machine can {request}")
        getattr(machine, request)(endpoint)
    except HarnessError as error:
        return str(error)
    return ""
