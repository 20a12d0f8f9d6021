# SPDX-License-Identifier: MIT
"""The pytest plugin in the guest: a test that makes the kernel complain, or leaves pages pinned, fails.

If NYMPH_REPORTS is set, it is the number of an open file which gets each report as a line of JSON, so that
the host's pytest can show every test as one of its own.
"""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from nymph_vm.kmsg import is_complaint, parse

UNPIN_SECONDS = 10


class KernelLog:
    """Reads what the kernel logs from now on."""

    def __init__(self) -> None:
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._file, 0, os.SEEK_END)

    def complaints(self) -> list[str]:
        """The complaints since the last call."""
        found: list[str] = []
        while True:
            try:
                record = os.read(self._file, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:  # records were lost, the next read goes on behind them
                found.append("(the kernel logged more than its buffer holds)")
                continue
            parsed = parse(record.splitlines()[0])
            if parsed and is_complaint(parsed[0], parsed[2]):
                found.append(parsed[2])


def pinned_pages() -> int:
    """How many pages are pinned for DMA. Only root can know: the kernel adds up what its CPUs counted."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    counted = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counted["nr_foll_pin_acquired"]) - int(counted["nr_foll_pin_released"])


class PinGate:
    """Fails the tear-down of the test that left pages pinned."""

    def __init__(self) -> None:
        self._before = pinned_pages()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        result = yield
        before = self._before
        until = time.monotonic() + UNPIN_SECONDS
        while (now := pinned_pages()) != before and time.monotonic() < until:
            time.sleep(0.05)  # close() does not wait for what runs, and nothing tells when that has ended
        self._before = now
        if now != before:
            pytest.fail(f"pages pinned: {now}, and before {before}", pytrace=False)
        return result


class Gate:
    """Fails the test or the tear-down that made the kernel complain."""

    def __init__(self) -> None:
        self._log = KernelLog()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        return (yield from self._watched())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        return (yield from self._watched())

    def _watched(self) -> Generator[None, Any, Any]:
        result = yield
        if complaints := self._log.complaints():
            pytest.fail("the kernel complained:\n" + "\n".join(complaints), pytrace=False)
        return result


class Reports:
    """Sends reports to the host."""

    def __init__(self, config: pytest.Config, file: int) -> None:
        self._config = config
        self._out = os.fdopen(file, "w", buffering=1)

    def _send(self, **what: Any) -> None:
        print(json.dumps(what), file=self._out)

    def _send_report(self, report: Any) -> None:
        self._send(report=self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._send(collected=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send_report(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send_report(report)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Gate())
    if os.geteuid() == 0:
        config.pluginmanager.register(PinGate())
    if "NYMPH_REPORTS" in os.environ:
        config.pluginmanager.register(Reports(config, int(os.environ.pop("NYMPH_REPORTS"))))
