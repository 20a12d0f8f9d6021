# SPDX-License-Identifier: MIT
"""Sensors of the machine: temperature, energy, and the name of the board."""

from __future__ import annotations

from pathlib import Path

import psutil

_SYS = Path("/sys")


def temperature() -> tuple[float | None, str | None]:
    """Return the temperature of the hottest sensor in °C; or None, and the reason."""
    found = [each.current for sensors in psutil.sensors_temperatures().values() for each in sensors]
    return (max(found), None) if found else (None, "no hwmon sensor and no thermal zone")


def board_id(set_to: str | None, root: Path = Path("/")) -> tuple[str | None, str | None]:
    """Return the name of the board and its source: the setting, the device tree, DMI, or None."""
    if set_to is not None:
        return set_to, "setting"
    if model := _read(root / "proc/device-tree/model"):
        return model.rstrip("\0"), "device-tree"
    dmi = root / "sys/class/dmi/id"
    board, system = (
        " ".join(filter(None, (_read(dmi / name) for name in names)))
        for names in (("board_vendor", "board_name"), ("sys_vendor", "product_name"))
    )
    return (board or system, "dmi") if board or system else (None, None)


class EnergyMeter:
    """Read the machine's energy counters: RAPL's packages, else those of hwmon.

    They count the whole machine, and wrap around. `reason`: why there are none, or None.
    """

    def __init__(self, root: Path = _SYS) -> None:
        rapl = sorted(root.glob("class/powercap/intel-rapl:?/energy_uj"))
        hwmon = sorted(root.glob("class/hwmon/hwmon*/energy*_input"))
        self._counters: list[tuple[Path, int]] = []  # µJ, and where each wraps
        self.reason: str | None = None if rapl or hwmon else "no RAPL zone and no energy sensor"
        for path in rapl or hwmon:
            try:
                int(path.read_text())
                most = _read(path.with_name("max_energy_range_uj"))
            except (OSError, ValueError) as error:
                self.reason = f"can't read {path}: {getattr(error, 'strerror', None) or 'it is no number'}"
                self._counters.clear()
                return
            self._counters.append((path, int(most) if most else 1 << 64))

    def read(self) -> list[int] | None:
        """Read all counters for used_wh(). Returns None if there are none, or one can't be read."""
        try:
            return [int(path.read_text()) for path, _ in self._counters] or None
        except (OSError, ValueError) as error:
            self.reason = f"an energy counter can't be read any more: {error}"
            return None

    def used_wh(self, before: list[int] | None) -> float | None:
        """Return the energy used since `before`, a result of read(), in Wh."""
        now = self.read()
        if before is None or now is None:
            return None
        wraps = (most for _, most in self._counters)
        return sum((b - a) % (most + 1) for a, b, most in zip(before, now, wraps, strict=True)) / 3.6e9


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
