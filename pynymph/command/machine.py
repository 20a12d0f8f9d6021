# SPDX-License-Identifier: MIT
"""`pynymph info`, `topology` and `reset`: this machine, its engines, and what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import re
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

import pynymph
from pynymph.abi import lib
from pynymph.command.terminal import (
    DIFFERS,
    NO_DRIVER,
    Failure,
    engine_names,
    json_option,
    print_json,
    size,
)
from pynymph.errors import NymphError
from pynymph.openfile import query
from pynymph.ring import DEVICE
from pynymph.topology import PciFunction, PciLink, topology

SYS = Path("/sys")
HEADER = Path("/usr/include/linux/pcie_nymph.h")
CLASS = "class/misc/pcie_nymph"
GROUP = "nymph"
MEMLOCK = 8 << 20
"""What the kernel gives every process by default."""
_CAP_IPC_LOCK = 14


@dataclass(frozen=True)
class Finding:
    """Tell what is wrong with the machine, or may be, and what to do."""

    what: str
    fix: str
    wrong: bool = True
    """False: rings work all the same."""


def read(path: str) -> str | None:
    """Return what a file of sysfs says, or None."""
    try:
        return (SYS / path).read_text().strip()
    except OSError:
        return None


def numbers(folder: str) -> dict[str, int]:
    """Return the numbers in a folder of the driver's in sysfs, by name."""
    found = {}
    for path in sorted((SYS / CLASS / folder).glob("*")):
        text = read(f"{CLASS}/{folder}/{path.name}")
        if text is not None and text.isdecimal():
            found[path.name] = int(text)
    return found


@click.command(short_help="Show driver, engines and limits, and what is wrong with this machine.")
@json_option
def info(as_json: bool) -> None:
    """Show driver, versions, engines and limits, and what is wrong with this machine with the fix for each.

    Exit status: 0 if rings work here, 1 if something is wrong.
    """
    findings = list[Finding]()
    report: dict[str, Any] = {"ok": True, "versions": _versions(findings), "device": _device(findings)}
    report["engines"] = _engines(findings) if report["device"]["loaded"] else []
    report["blake3"] = read(f"{CLASS}/blake3")
    report["limits"] = {**numbers("limits"), "memlock": _memlock(findings)}
    counters = numbers("counters")
    if counters.get("quarantined"):
        what = f"{counters['quarantined']} operations are in quarantine: a channel may write their memory yet"
        findings.append(Finding(what, "sudo pynymph reset"))
    if failures := counters.get("engine_failures"):
        what = f"engines failed {failures} times since the module was loaded"
        findings.append(Finding(what, "see the kernel log: sudo dmesg | grep nymph", wrong=False))
    report["iommu"] = _iommu(findings, report["engines"])
    report["findings"] = [asdict(finding) for finding in findings]
    report["ok"] = not any(finding.wrong for finding in findings)
    if as_json:
        print_json(report)
    else:
        _show(report, findings)
    click.get_current_context().exit(0 if report["ok"] else DIFFERS)


def _versions(findings: list[Finding]) -> dict[str, Any]:
    """Versions of package, module and header; those that are not there are None."""
    ours = int(lib.NYMPH_ABI_VERSION)
    found: dict[str, Any] = {"package": pynymph.__version__, "module": read("module/pcie_nymph/version")}
    found |= {"abi_of_package": ours, "abi_of_driver": None, "abi_of_header": None}
    with contextlib.suppress(NymphError):
        found["abi_of_driver"] = query().version
    try:
        defined = re.search(r"^#define\s+NYMPH_ABI_VERSION\s+(\d+)", HEADER.read_text(), re.MULTILINE)
        found["abi_of_header"] = int(defined[1]) if defined else None
    except OSError:
        pass
    for name, where in (("abi_of_driver", "the loaded module"), ("abi_of_header", str(HEADER))):
        if found[name] not in (None, ours):
            what = f"{where} has version {found[name]} of the interface, and this package has {ours}"
            fix = "install module, header and package of one release"
            findings.append(Finding(what, fix, wrong=name == "abi_of_driver"))
    module = found["module"]
    if module not in (None, pynymph.__version__):
        what = f"the loaded module is {module}, and this package is {pynymph.__version__}"
        findings.append(Finding(what, "install both of one release, then load the module again", wrong=False))
    return found


def _device(findings: list[Finding]) -> dict[str, Any]:
    loaded, there = (SYS / "module/pcie_nymph").exists(), Path(DEVICE).exists()
    usable = there and os.access(DEVICE, os.R_OK | os.W_OK)
    release = os.uname().release
    if not loaded and not there:
        if _installed(release):
            findings.append(Finding("module pcie_nymph is not loaded", "sudo modprobe pcie_nymph"))
        else:
            fix = f"install pynymph-dkms and linux-headers-{release}: docs/how-to/install.md"
            fix += "; or try --engine model, which needs no driver"
            findings.append(Finding(f"module pcie_nymph is not installed for Linux {release}", fix))
    elif not there:
        fix = f"restart udev: sudo udevadm trigger {DEVICE}; in a container, pass the device on"
        findings.append(Finding(f"the module is loaded, and there is no {DEVICE}", fix))
    elif not usable:
        findings.append(_no_access())
    return {"path": DEVICE, "loaded": loaded or there, "usable": usable}


def _installed(release: str) -> bool:
    try:
        listed = Path(f"/lib/modules/{release}/modules.dep").read_text()
    except OSError:
        return False
    return re.search(r"^\S*/pcie_nymph\.ko\S*:", listed, re.MULTILINE) is not None


def _no_access() -> Finding:
    user = pwd.getpwuid(os.getuid()).pw_name if _known(os.getuid()) else str(os.getuid())
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        fix = "install systemd/sysusers.d/nymph.conf and udev/90-pcie-nymph.rules: docs/how-to/board.md"
        return Finding(f"{DEVICE} is not yours to open, and there is no group {GROUP}", fix)
    if user in group.gr_mem and group.gr_gid not in os.getgroups():
        return Finding(f"this login session is older than {user}'s group {GROUP}", "log in again")
    fix = f"sudo usermod -aG {GROUP} {user}, then log in again"
    return Finding(f"{user} is not in group {GROUP}, which {DEVICE} belongs to", fix)


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _memlock(findings: list[Finding]) -> int | None:
    """Bytes that this process may lock, or None for no limit."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or _unlimited():
        return None
    if limit < MEMLOCK:
        what = f"RLIMIT_MEMLOCK lets this process lock {size(limit)}, and rings need up to {size(MEMLOCK)}"
        file = "/etc/security/limits.d/nymph.conf"
        fix = f"a line `@{GROUP} - memlock {MEMLOCK >> 10}` in {file}, then log in again"
        findings.append(Finding(what, fix))
    return limit


def _unlimited() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    capabilities = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    return bool(capabilities and int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1)


def _engines(findings: list[Finding]) -> list[dict[str, Any]]:
    engines = []
    for name in engine_names(str(SYS)):
        device = (SYS / "class/dma" / name / "device").resolve()
        if not device.exists():
            engines.append({"name": name, "device": None, "driver": None, "iommu": None})
            continue
        driver = (device / "driver").resolve()
        domain = read(str(device / "iommu_group/type")) or "none"
        bound = driver.name if driver.exists() else None
        engines.append({"name": name, "device": device.name, "driver": bound, "iommu": domain})
    if not any(engine["device"] for engine in engines):
        others = sorted(path.name for path in (SYS / "class/dma").glob("*"))
        if others:
            what = f"rings may use no DMA channel; the machine has {', '.join(others[:8])}"
            fix = "allow those that copy memory: the module's parameter dma_channels, docs/how-to/engine.md"
        else:
            what, fix = "the machine has no DMA channel: the CPU moves all bytes", "docs/how-to/engine.md"
        findings.append(Finding(what, fix, wrong=False))
    return engines


def _iommu(findings: list[Finding], engines: list[dict[str, Any]]) -> dict[str, Any]:
    units = sorted(path.name for path in (SYS / "class/iommu").glob("*"))
    bare = sorted({engine["device"] for engine in engines if engine["iommu"] in ("none", "identity")})
    if bare:
        what = f"no IOMMU translates for {', '.join(bare)}: such a device can write anywhere in memory"
        fix = "turn the IOMMU on, in the firmware and with intel_iommu=on (or AMD's) iommu.passthrough=0"
        findings.append(Finding(what, fix, wrong=False))
    return {"units": units, "untranslated": bare}


def _show(report: dict[str, Any], findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    versions, device, limits = report["versions"], report["device"], report["limits"]
    state = "ready" if device["usable"] else "not usable" if device["loaded"] else "no driver"
    module = versions["module"] or f"interface {versions['abi_of_driver'] or 'unknown'}"
    rings = ""
    if "max_rings" in limits:
        rings = (
            f"at most {limits['max_rings']}, {limits['max_user_rings']} of one user, of "
            f"{limits['max_entries']} entries, each of at most {size(limits['max_length'])}"
        )
    lines = {
        "device": f"{device['path']}: {state}",
        "package": f"pynymph {versions['package']}, interface {versions['abi_of_package']}",
        "module": module if device["loaded"] else "not loaded",
        "header": f"interface {versions['abi_of_header']}" if versions["abi_of_header"] else "not installed",
        "digests": f"BLAKE3 by {report['blake3']}" if report["blake3"] else "",
        "locked memory": "no limit" if limits["memlock"] is None else f"at most {size(limits['memlock'])}",
        "rings": rings,
        "IOMMU": ", ".join(report["iommu"]["units"]) or "none",
    }
    for name, text in lines.items():
        if text:
            click.echo(f"{name + ':':15}{text}")
    if report["engines"]:
        table = Table("engine", "device", "driver", "IOMMU", box=None, pad_edge=False)
        for engine in report["engines"]:
            table.add_row(*(engine[key] or "-" for key in ("name", "device", "driver", "iommu")))
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    for finding in findings:
        click.echo(f"{'WRONG' if finding.wrong else 'note'}: {finding.what}\n  fix: {finding.fix}")
    if report["ok"]:
        click.echo("rings work here")


# --- topology ---


@click.command("topology", short_help="Show the PCI functions, their drivers and DMA channels.")
@click.option("--root", default="/sys", metavar="PATH", help="Where sysfs is (default: /sys).")
@json_option
def show_topology(root: str, as_json: bool) -> None:
    """Show the PCI functions of this machine as a tree, with links, drivers, interrupts and DMA channels."""
    from rich.console import Console
    from rich.tree import Tree

    functions = topology(root)
    if as_json:
        click.echo(json.dumps([asdict(function) for function in functions], indent=2))
        return
    tree = Tree("PCI")
    _grow(tree, functions)
    # A terminal wraps lines inside the tree; elsewhere each function is one line.
    Console(width=None if sys.stdout.isatty() else 1000).print(tree)


def _grow(tree: Any, functions: Iterable[PciFunction]) -> None:
    for function in functions:
        _grow(tree.add(_line(function)), function.children)


def _line(function: PciFunction) -> Any:
    from rich.text import Text

    kind = f"{function.port} port" if function.port else function.kind
    facts = [
        function.driver or "no driver",
        f"slot {function.slot}" if function.slot else "",
        _link(function.link) if function.link else "",
        f"interrupts {function.interrupts}" if function.interrupts else "",
        " ".join(function.dma_channels),
    ]
    about = f" {kind} {function.id}: {', '.join(filter(None, facts))}"
    return Text.assemble((function.address, "bold"), about)


def _link(link: PciLink) -> str:
    """As in "2.5 GT/s x1 of 16 GT/s x32", with ? for what it does not say."""
    now, most = (
        f"{f'{speed:g}' if speed else '?'} GT/s x{width or '?'}"
        for speed, width in ((link.speed, link.width), (link.max_speed, link.max_width))
    )
    return now if now == most else f"{now} of {most}"


# --- reset ---


@click.command(short_help="Take engines' devices from their driver, and give them back.")
@click.argument("engines", metavar="[ENGINE]...", nargs=-1, shell_complete=lambda *_: engine_names(str(SYS)))
@click.option("--timeout", default=10.0, metavar="SECONDS", help="How long to wait for them (default: 10).")
@json_option
def reset(engines: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Take the devices of engines from their driver, and give them back; without ENGINE, of all.

    Copies that run on them fail, or go on by the CPU where auto chose the engine. Memory in quarantine is
    freed. Only root can do it. A ring of a process is reset by that process alone: pynymph.Ring.reset().
    """
    listed = engine_names(str(SYS))
    if not listed:
        raise Failure("there is no driver, and so no engine to reset", NO_DRIVER)
    devices = dict[Path, list[str]]()
    for name in engines or [name for name in listed if name != "cpu"]:
        device = (SYS / "class/dma" / name / "device").resolve()
        if name not in listed:
            raise Failure(f"there is no engine {name!r}; there are: {', '.join(listed)}")
        if not (device / "driver").exists():
            raise Failure(f"engine {name} has no device to reset")
        devices.setdefault(device, [])
    if not devices:
        raise Failure("the only engine is cpu, which has no device to reset")
    for name in listed:
        device = (SYS / "class/dma" / name / "device").resolve()
        if device in devices:
            devices[device].append(name)
    done = []
    before = numbers("counters").get("quarantined", 0)
    for device, names in devices.items():
        driver = (device / "driver").resolve()
        _write(driver / "unbind", device.name)
        _write(driver / "bind", device.name)
        done.append({"device": device.name, "driver": driver.name, "engines": names})
    wanted = {name for names in devices.values() for name in names}
    deadline = time.monotonic() + timeout
    while (missing := sorted(wanted - set(engine_names(str(SYS))))) and time.monotonic() < deadline:
        time.sleep(0.05)
    after = numbers("counters").get("quarantined", 0)
    if as_json:
        report = {"reset": done, "missing": missing, "quarantined_before": before, "quarantined_after": after}
        print_json(report)
    else:
        for each in done:
            of = ", ".join(each["engines"])
            click.echo(f"{each['device']}: unbound from {each['driver']} and bound again: {of}")
        click.echo(f"operations in quarantine: {before} before, {after} now")
    if missing:
        raise Failure(f"{', '.join(missing)} did not come back within {timeout:g} s", DIFFERS)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except PermissionError:
        raise Failure(f"{path} is root's to write: sudo pynymph reset") from None
    except OSError as error:
        reason = "the device refuses" if error.errno == errno.ENODEV else error.strerror
        raise Failure(f"{path}: {reason}") from None
