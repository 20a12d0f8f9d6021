# SPDX-License-Identifier: MIT
"""Faults of a device, on command: what can go wrong, and when it does. KINDS are those of the endpoint.

Whether a fault strikes depends on its seed, the channel, and how many descriptors that channel has had under
it: so the same run meets the same faults again, also when the channel dies and is restarted in between.
"""

import json
import mmap
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

KINDS = {
    "flip": "one bit of the payload is flipped",
    "short": "the end of the payload is not written, though the completion says so",
    "misplaced": "the payload is written a few bytes off, inside the destination",
    "skipped": "nothing is written, though the completion says so",
    "lost": "there is no completion",
    "doubled": "there are two completions",
    "unknown": "the completion is of a descriptor nobody handed over",
    "reordered": "the completion comes after that of the next descriptor",
    "stall": "the channel stops, and its beat with it",
    "slow": "the copy takes 20 ms more",
    "no-interrupt": "the interrupt is lost",
    "garbage-register": "a register of the channel that the device owns gets a random value",
    "garbage-ring": "a word of the completion ring gets a random value",
    "death": "the channel's process dies",
}

_CHANNELS = 16
_MOST = 16  # faults at a time
_TEXT = 4096  # where the faults begin in the shared memory, as JSON
_SIZE = 16384


@dataclass(frozen=True)
class Fault:
    """One kind of fault. Strikes each descriptor with probability `rate`, drawn with `seed`.

    But not the first `after` of a channel, and at most `count` times per channel; on `channel`, or on all.
    """

    kind: str
    rate: float = 1.0
    seed: int = 0
    after: int = 0
    count: int | None = None
    channel: int | None = None

    kinds: ClassVar[Mapping[str, str]] = KINDS  # of other devices: others

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise ValueError(f"no fault {self.kind!r}: there are {', '.join(self.kinds)}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"a fault's rate is above 0 and at most 1, and not {self.rate}")

    def __str__(self) -> str:
        """As parse() takes it."""
        given = [(field.name, getattr(self, field.name)) for field in fields(self)[1:] if
                 getattr(self, field.name) != field.default]  # fmt: skip
        return ":".join(filter(None, [self.kind, ",".join(f"{name}={value}" for name, value in given)]))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From KIND[:NAME=NUMBER,...], as in "flip:rate=0.01,seed=7". Raises ValueError."""
        kind, _, rest = text.partition(":")
        names = [field.name for field in fields(cls)][1:]
        values: dict[str, float] = {}
        for part in filter(None, rest.split(",")):
            name, _, value = part.partition("=")
            if name not in names:
                raise ValueError(f"a fault has no {name!r}: it has {', '.join(names)}")
            try:
                values[name] = float(value) if name == "rate" else int(value)
            except ValueError:
                raise ValueError(f"the {name} of a fault is a number, and not {value!r}") from None
        return cls(kind, **values)  # type: ignore[arg-type]

    def strikes(self, channel: int, number: int) -> random.Random | None:
        """Whether it strikes that descriptor under it; if so, where further choices come from."""
        if number < self.after or self.channel not in (None, channel):
            return None
        chance = random.Random(f"{self.seed}/{channel}/{number}")
        return chance if chance.random() < self.rate else None


def with_faults(*faults: Fault) -> dict[str, Any]:
    """What Function.ask() has a model of nymph_vm.devices obey: these faults from now on, and no others."""
    return {"faults": [asdict(fault) for fault in faults]}


def deliver(source: memoryview, target: memoryview, kind: str, chance: random.Random) -> None:
    """Copy as a device does that has a fault of this kind, which may be of another matter, or "" for none."""
    length = len(source)
    if kind == "short" and length:
        written = chance.randrange(length)
        target[:written] = source[:written]
    elif kind == "misplaced" and length:
        off = 1 + chance.randrange(min(length, 64))
        target[off:] = source[: length - off]
    elif kind != "skipped":
        target[:] = source
    if kind == "flip" and length:
        target[chance.randrange(length)] ^= 1 << chance.randrange(8)


class Board:
    """The faults there are, and how often each struck: in memory that all processes of the device share."""

    def __init__(self, fault: type[Fault] = Fault) -> None:
        """fault: the class of the device's faults."""
        self._fault = fault
        self._memory = mmap.mmap(-1, _SIZE)
        self._words = memoryview(self._memory).cast("I")
        self._seen_version = 0
        self._faults: list[Fault] = []

    def set(self, faults: Sequence[Fault]) -> None:
        """Replace all faults, and begin to count anew."""
        if len(faults) > _MOST:
            raise ValueError(f"{len(faults)} faults are more than the {_MOST} there can be")
        text = json.dumps([asdict(fault) for fault in faults]).encode()
        self._words[1] = 0  # no faults while the text changes
        self._memory[_TEXT : _TEXT + len(text)] = text
        self._words[2 : _TEXT // 4] = memoryview(bytes(_TEXT - 8)).cast("I")
        self._words[1] = len(text)
        self._words[0] += 1

    def obey(self, request: Any) -> dict[str, Any]:
        """Set the faults of with_faults(...), if it is that; tell how often each kind struck."""
        if "faults" in request:
            self.set([self._fault(**each) for each in request["faults"]])
        return {"injected": self.injected()}

    def injected(self) -> dict[str, int]:
        """How often each kind struck since set()."""
        found: dict[str, int] = {}
        for i, fault in enumerate(self.faults()):
            struck = sum(self._words[self._at(i, channel) + 1] for channel in range(_CHANNELS))
            found[fault.kind] = found.get(fault.kind, 0) + struck
        return found

    def faults(self) -> list[Fault]:
        version, length = self._words[0], self._words[1]
        if not length:
            return []  # set() is at it, or was never called
        if version != self._seen_version:
            text = self._memory[_TEXT : _TEXT + length]
            self._faults = [self._fault(**each) for each in json.loads(text)]
            self._seen_version = version
        return self._faults

    def draw(self, channel: int) -> tuple[str, random.Random] | None:
        """What strikes the next descriptor of a channel; counted by now. One fault is enough at a time."""
        drawn = None
        for i, fault in enumerate(self.faults()):
            at = self._at(i, channel)
            number = self._words[at]
            self._words[at] = number + 1
            if drawn or (fault.count is not None and self._words[at + 1] >= fault.count):
                continue
            if chance := fault.strikes(channel, number):
                self._words[at + 1] += 1
                drawn = fault.kind, chance
        return drawn

    @staticmethod
    def _at(fault: int, channel: int) -> int:
        return 16 + 2 * (fault * _CHANNELS + channel)
