# SPDX-License-Identifier: MIT
"""The open file of a ring: who may use it, and requests with errors that say what to do."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

from pynymph import abi
from pynymph.abi import address, ffi, lib
from pynymph.errors import (
    FORKED,
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    Hints,
    error,
    open_hints,
    refused,
)
from pynymph.integers import shown
from pynymph.model import Model
from pynymph.mutex import Mutex
from pynymph.owner import Owner
from pynymph.state import Query

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEVICE = "/dev/pcie_nymph"
MODEL = "model:"


class OpenFile(Owner):
    """A file of the driver, or a model of one, for one process and one of its threads at a time."""

    # Also where __init__ did not get far.
    file: abi.Device | Model | None = None

    def __init__(self, device: str) -> None:
        self.device = device
        self.pid = os.getpid()
        self.mutex = Mutex()
        """Guards everything but lock() itself."""
        self.engines: dict[int, str] = {}

    def open(self) -> None:
        """Open the device, and ask it for its engines."""
        self.file = _open(self.device)
        self.engines = _query(self.file, self.device).engines

    @property
    def is_model(self) -> bool:
        """Whether there is no driver behind it, but Python alone."""
        return self.device == MODEL

    def lock(self) -> Mutex:
        """Return the mutex, for `with`. Raises ForkedError in a child, NymphError in a signal's handler."""
        if os.getpid() != self.pid:
            raise error(errno.EPERM, FORKED)
        if self.mutex.is_mine:
            message = "a signal's handler can't use the ring that it interrupts; let it raise"
            raise error(errno.EDEADLK, message)
        return self.mutex

    # Everything below is called with the mutex held.

    def opened(self) -> abi.Device | Model:
        """Return the file. Raises ClosedError if it is closed."""
        if self.file is None:
            raise ClosedError(errno.EBADF, "the ring is closed; open another one")
        return self.file

    def ioctl(self, number: int, arg: Any = None, hints: Hints | None = None) -> None:
        """Make a request. Raises NymphError, by `hints` of what its errors mean."""
        file = self.opened()
        try:
            file.ioctl(number, arg)
        except OSError as e:
            raise refused(e.errno or 0, hints or {}) from None

    def map(self, nbytes: int, offset: int) -> Buffer:
        """Map memory of the driver."""
        try:
            return self.opened().mmap(nbytes, offset)
        except OSError as e:
            message = f"{nbytes} bytes are not mapped: {e.strerror}; free some, or raise RLIMIT_AS"
            raise error(e.errno or 0, message) from None

    def close_file(self) -> None:
        """Close the file, which is open."""
        file, self.file = self.file, None
        assert file is not None
        file.close()

    def engine_name(self, number: int) -> str | None:
        """Look up what engine `number` of a record is called; None for 0."""
        if number == 0:
            return None
        if number not in self.engines:
            self.engines = _query(self.opened(), self.device).engines
        return self.engines.get(number)


def query(device: str = DEVICE) -> Query:
    """Ask the driver what it serves.

    Args:
        device: as for Ring.

    Returns:
        A Query.

    Raises:
        NymphError: ENOENT or EACCES, the device is missing or not yours to open.
    """
    opened = _open(device)
    try:
        return _query(opened, device)
    finally:
        opened.close()


def checked_engine(engine: str) -> str:
    """Raise ArgumentError for what can't be the name of one."""
    if not isinstance(engine, str):
        raise ArgumentTypeError(errno.EINVAL, f"engine is {shown(engine)}; give a name of query().engines")
    size = len(engine.encode(errors="surrogatepass"))
    if size >= lib.NYMPH_ENGINE_NAME_SIZE or not engine.isprintable():
        message = f"no engine has a name like {shown(engine)}; query().engines has those there are"
        raise ArgumentError(errno.EINVAL, message)
    return engine


def refuse_patched_waits(device: str) -> None:
    """Raise NymphError if gevent has replaced what waits: two greenlets of a thread have the same lock."""
    monkey = sys.modules.get("gevent.monkey")
    needed = {"select": "select", "thread": "_thread", "time": "time"}
    if device == MODEL:
        needed["socket"] = "socket"
    if monkey is None or not any(map(monkey.is_module_patched, needed.values())):
        return
    options = ", ".join(f"{name}=False" for name in needed)
    message = (
        f"gevent has replaced {' or '.join(needed)}, and waiting would hang; use "
        f"monkey.patch_all({options}), and gevent's threadpool for calls that wait"
    )
    raise error(errno.EOPNOTSUPP, message)


def _open(device: str) -> abi.Device | Model:
    try:
        return Model() if device == MODEL else abi.Device(device)
    except (TypeError, ValueError) as e:  # what is no path; a NUL in it
        message = f"device is {shown(device)}; give {DEVICE!r} or {MODEL!r}: {e}"
        raise ArgumentTypeError(errno.EINVAL, message) from None
    except OSError as e:
        number = e.errno or 0
        hints = open_hints(device, MODEL)
        raise error(number, hints.get(number, f"can't open {device}: {e.strerror}")) from None


def _query(file: abi.Device | Model, device: str) -> Query:
    room = 16
    while True:
        engines = ffi.new("struct nymph_engine_info[]", room)
        arg = abi.new("nymph_query", engines=address(engines), max_engines=room)
        try:
            file.ioctl(abi.NYMPH_IOC_QUERY, arg)
        except OSError as e:
            why = " is not a device of pcie_nymph" if e.errno == errno.ENOTTY else f": {e.strerror}"
            raise error(e.errno or 0, f"{device}{why}") from None
        if arg.num_engines <= room:
            break
        room = arg.num_engines
    return Query(
        version=arg.version,
        features=arg.features,
        requests=arg.requests,
        opcodes=arg.opcodes,
        entry_flags=arg.entry_flags,
        max_length=arg.max_length,
        max_entries=arg.max_entries,
        setup_flags=arg.setup_flags,
        engines={e.id: ffi.string(e.name).decode() for e in engines[0 : arg.num_engines]},
    )
