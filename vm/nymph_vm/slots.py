# SPDX-License-Identifier: MIT
"""Where endpoints sit: the PCIe ports that QEMU is to have, and which of them has which endpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

from nymph_vm.arch import Arch

Option = tuple[str, str]  # of QEMU: its name, and its value


@dataclass(frozen=True)
class Slots:
    """Ports, and what is in them."""

    buses: dict[str, str]  # where each endpoint is plugged in, by its name: ep0, ep1, ...
    options: tuple[Option, ...]  # what has QEMU make these buses, and all that is there beside endpoints
    modules: tuple[str, ...] = ()  # of the guest's kernel, for what is beside endpoints


def root_ports(count: int) -> Slots:
    """Each endpoint on a root port of its own."""
    numbers = range(count)
    ports = [
        # With room for a device that comes later: firmware reserves little where there is none.
        f"pcie-root-port,id=ep{i}-port,chassis={i + 1},slot={i + 1},pref64-reserve=64M"
        for i in numbers
    ]
    return Slots({f"ep{i}": f"ep{i}-port" for i in numbers}, _devices(ports))


def board() -> Slots:
    """The NYMPH board: a switch with ports DL0 to DL5, an NVMe drive on DL1, endpoints on DL2 to DL5.

    QEMU's switch cannot be told to reserve room. An endpoint plugged in again has that of the one before it,
    because a port keeps its windows; DL0 has none for one.
    """
    switch = [
        "pcie-root-port,id=root-port,chassis=1,slot=6",
        "x3130-upstream,id=upstream,bus=root-port",
        *(f"xio3130-downstream,id=dl{i},bus=upstream,addr={i},chassis=2,slot={i}" for i in range(6)),
    ]
    # It reads as zeros, and ignores writes.
    drive = ("blockdev", f"driver=null-co,node-name=nvme,size={64 << 20},read-zeroes=on")
    nvme = "nvme,drive=nvme,serial=nymph,bus=dl1"
    buses = {f"ep{i}": f"dl{i + 2}" for i in range(4)}
    return Slots(buses, (drive, *_devices([*switch, nvme])), modules=("nvme",))


def _devices(devices: Iterable[str]) -> tuple[Option, ...]:
    return tuple(("device", device) for device in devices)


def native(count: int) -> Slots:
    """Each endpoint a function of a native guest's only bus."""
    return Slots({f"ep{i}": f"00:{i:02x}.0" for i in range(count)}, ())


def usual(arch: Arch, count: int) -> Slots:
    """That many endpoints where guests of that architecture usually have them."""
    return native(count) if arch.is_native else root_ports(count)
