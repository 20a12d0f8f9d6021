# SPDX-License-Identifier: MIT
"""Read the PCI functions of this machine, their drivers and their DMA channels, from sysfs."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pynymph.errors import NymphError

PortKind = Literal["root", "upstream", "downstream"]

# By class code, or how that begins: base class, subclass, programming interface.
_KINDS = {
    "01": "storage", "0106": "sata", "010802": "nvme", "02": "network", "03": "display", "04": "multimedia",
    "05": "memory", "0600": "host", "0601": "isa", "0604": "bridge", "08": "peripheral", "0801": "dma",
    "0c03": "usb", "0c05": "smbus", "12": "accelerator",
}  # fmt: skip

_CAPABILITIES_BIT, _CAPABILITIES, _PCI_EXPRESS = 1 << 4, 0x34, 0x10
_PORTS: dict[int, PortKind] = {4: "root", 5: "upstream", 6: "downstream"}


@dataclass(frozen=True)
class PciLink:
    """Describe the PCI Express link of a function: GT/s and lanes, or None where unknown."""

    speed: float | None
    width: int | None
    max_speed: float | None
    max_width: int | None


@dataclass(frozen=True)
class PciFunction:
    """Describe a PCI function, and all functions below it."""

    address: str
    """domain:bus:device.function, as in "0000:05:00.0"."""
    id: str
    """Vendor and device, as in "1af4:1110"."""
    kind: str
    """A word for its class, or the class code where there is none."""
    class_code: str
    """Six hexadecimal digits."""
    driver: str | None
    port: PortKind | None
    """Of PCI Express ports. None also where only root may read that (who else sees no capabilities)."""
    link: PciLink | None
    slot: str | None
    """The physical slot it is in."""
    interrupts: int
    """How many MSI or MSI-X vectors are in use."""
    dma_channels: tuple[str, ...]
    """Names: such a channel is the engine of that name, pynymph.Ring(engine=...)."""
    children: tuple[PciFunction, ...]

    def walk(self) -> Iterator[PciFunction]:
        """Iterate over the function and all below it, from top to bottom."""
        yield self
        for child in self.children:
            yield from child.walk()


def topology(root: str | Path = "/sys") -> tuple[PciFunction, ...]:
    """Read the functions on this machine's root buses, with all that is below each.

    A function that is unplugged during the call may be listed with fewer details.

    Args:
        root: where sysfs is mounted.

    Returns:
        A PciFunction for each on a root bus, by address.

    Raises:
        NymphError: ENOENT, the machine has no PCI, or no sysfs is there.
    """
    bus = Path(root) / "bus/pci"
    try:
        paths = sorted(path.resolve() for path in (bus / "devices").iterdir())
    except OSError:
        message = f"{bus}/devices cannot be read: this machine has no PCI, or no sysfs is there"
        raise NymphError(errno.ENOENT, message) from None
    slots = {_read(slot / "address"): slot.name for slot in bus.glob("slots/*")}
    channels: dict[Path, list[str]] = {}
    for channel in sorted(Path(root).glob("class/dma/*"), key=_by_number):
        channels.setdefault((channel / "device").resolve(), []).append(channel.name)

    below: dict[Path, list[PciFunction]] = {}  # by the path they are in, the last first
    for path in reversed(paths):  # so that all below a function comes before it
        children = tuple(reversed(below.pop(path, [])))
        slot = slots.get(path.name.partition(".")[0])
        function = _function(path, slot, tuple(channels.get(path, ())), children)
        if function is not None:
            below.setdefault(path.parent, []).append(function)
    tops = [function for functions in below.values() for function in functions]
    return tuple(sorted(tops, key=lambda function: function.address))


def _function(
    path: Path, slot: str | None, channels: tuple[str, ...], children: tuple[PciFunction, ...]
) -> PciFunction | None:
    """The function with that path, or None if it is gone."""
    vendor, device, code = (_hex(path / name) for name in ("vendor", "device", "class"))
    if not (vendor and device and code):
        return None
    kind = next((_KINDS[code[:n]] for n in (6, 4, 2) if code[:n] in _KINDS), code)
    port = _port(path / "config") if kind == "bridge" else None
    interrupts = sum(1 for _ in path.glob("msi_irqs/*"))
    return PciFunction(
        path.name, f"{vendor}:{device}", kind, code, _driver(path), port, _link(path), slot, interrupts,
        channels, children,
    )  # fmt: skip


def _read(path: Path) -> str | None:
    """What an attribute says, if it is there and does."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _hex(path: Path) -> str | None:
    text = _read(path)
    return text.removeprefix("0x") if text else None


def _driver(path: Path) -> str | None:
    try:
        return (path / "driver").readlink().name
    except OSError:
        return None


def _link(path: Path) -> PciLink | None:
    speed, width, max_speed, max_width = (
        _read(path / f"{which}_link_{what}") for which in ("current", "max") for what in ("speed", "width")
    )
    if speed is None:
        return None
    return PciLink(_gt(speed), _lanes(width), _gt(max_speed), _lanes(max_width))


def _gt(speed: str | None) -> float | None:
    found = re.match(r"([\d.]+) GT/s", speed or "")  # else it is Unknown
    return float(found[1]) if found else None


def _lanes(width: str | None) -> int | None:
    lanes = int(width or 0)
    return lanes if 0 < lanes < 255 else None  # 255 is the kernel's word for unknown


def _port(config: Path) -> PortKind | None:
    """What the PCI Express capability says; it is beyond the 64 bytes that any user may read."""
    try:
        with config.open("rb") as file:
            space = file.read(256)
    except OSError:
        return None
    if len(space) < 256 or not space[6] & _CAPABILITIES_BIT:
        return None
    at = space[_CAPABILITIES] & ~3
    for _ in range(48):  # there is no room for more: a broken list may run in circles
        if at < 0x40:
            break
        if space[at] == _PCI_EXPRESS:
            return _PORTS.get(space[at + 2] >> 4)
        at = space[at + 1] & ~3
    return None


def _by_number(channel: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", channel.name)]
