# SPDX-License-Identifier: MIT
"""The pytest plugin on the host: a booted machine for tests, whose kernel log has to stay clean.

A test that uses `vm` fails if the guest's kernel complains during it. A lost machine is no test's failure:
it ends pytest, with the exit status nymph-vm has for it.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from nymph_vm import kernels
from nymph_vm.arch import AMD64, ARCHS
from nymph_vm.host import HarnessError
from nymph_vm.machine import Machine
from nymph_vm.state import VMLost

MACHINE = pytest.StashKey[Machine]()
EXIT_STATUS = pytest.StashKey[int]()

# Where the guest has the tests: the same for all users, so that pytest compiles them once.
FOLDER = "/srv"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel", choices=kernels.NAMES, help="The guest's (fixture vm); left out: the usual one."
    )
    parser.addoption("--arch", choices=list(ARCHS), default=AMD64.name, help="The guest's architecture.")
    parser.addoption("--long", action="store_true", help="Do far more often what is done many times.")
    parser.addoption("--append", default="", help="More for the command line of the guest's kernel.")
    parser.addoption("--gcov", type=Path, help="A tar for what a debug kernel counted of the module's code.")


@pytest.fixture(scope="session")
def vm(
    request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]
) -> Iterator[Machine]:
    """A machine with the module loaded, one for the whole session."""
    complained: list[str] = []
    try:
        name, arch, more = map(request.config.getoption, ("kernel", "arch", "append"))
        machine = Machine(
            f"pytest-{os.getpid()}",
            kernel=kernels.named(name, arch),
            append=more,
            on_complaint=complained.append,
        )
    except HarnessError as error:
        _give_up(request.config, error)
    with machine:
        request.config.stash[MACHINE] = machine
        record_testsuite_property("boot_seconds", machine.boot_seconds)
        yield machine
        record_testsuite_property("complaints", len(complained))
        if (archive := request.config.getoption("gcov")) and machine.lost is None:
            archive.write_bytes(machine.gcov())


@pytest.fixture(autouse=True)
def _clean_kernel_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the tear-down of other fixtures: this one's comes last."""
    if "vm" in request.fixturenames:
        request.getfixturevalue("vm")
    yield
    if "vm" in request.fixturenames and EXIT_STATUS not in request.config.stash:
        _check(request.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        result = yield
    except VMLost as lost:
        if lost.machine is item.config.stash.get(MACHINE, None):
            _give_up(item.config, lost)
        raise
    if "vm" in getattr(item, "fixturenames", ()):
        _check(item.config)
    return result


def _check(config: pytest.Config) -> None:
    machine = config.stash[MACHINE]
    try:
        complaints, taint = machine.complaints(), machine.taint()
    except VMLost as lost:
        _give_up(config, lost)
    if complaints:
        pytest.fail("the guest's kernel complained:\n" + "\n".join(complaints), pytrace=False)
    if taint:
        pytest.fail(f"the guest's kernel is tainted: {taint:#x} in /proc/sys/kernel/tainted", pytrace=False)


def _give_up(config: pytest.Config, error: HarnessError) -> NoReturn:
    config.stash[EXIT_STATUS] = error.exit_status
    pytest.exit(f"no virtual machine: {error}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    result = yield
    # Only now: with a status pytest does not know, there would be no summary.
    session.exitstatus = session.config.stash.get(EXIT_STATUS, session.exitstatus)
    return result


@pytest.fixture
def run_guest_tests(request: pytest.FixtureRequest, vm: Machine) -> Callable[..., None]:
    """run_guest_tests(user, path, *options) has pytest run the tests at `path` in the guest.

    Each shows among the host's own. With --long, NYMPH_LONG is set there.
    """
    config, session = request.config, request.session
    capture = config.pluginmanager.getplugin("capturemanager")

    def run(user: str, path: str, *options: str) -> None:
        vm.copy_in(path, to=FOLDER)
        # Reports go to stdout, and what pytest itself prints to stderr.
        script = 'exec 3>&1 >&2; NYMPH_REPORTS=3 exec python3 -m pytest -p no:cacheprovider "$@"'
        script = f"cd {FOLDER}; {script}"
        if config.getoption("long"):
            script = f"export NYMPH_LONG=1; {script}"
        command = vm.command(["sh", "-c", script, "tests", path, *options], user=user)
        with tempfile.TemporaryFile("w+") as output:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as there:
                assert there.stdout
                for line in there.stdout:
                    sent = json.loads(line)
                    if "collected" in sent:
                        session.testscollected += sent["collected"]  # for the progress display
                        continue
                    report = config.hook.pytest_report_from_serializable(config=config, data=sent["report"])
                    report.nodeid = f"{user}:{report.nodeid}"
                    if isinstance(report.longrepr, list):  # where it was skipped: JSON has no tuples
                        report.longrepr = tuple(report.longrepr)
                    is_test = isinstance(report, pytest.TestReport)
                    hook = (
                        config.hook.pytest_runtest_logreport if is_test else config.hook.pytest_collectreport
                    )
                    with capture.global_and_fixture_disabled():
                        hook(report=report)
            vm.sync()
            output.seek(0)
            # 1 means that tests failed, which their own reports say.
            if there.returncode not in (0, 1):
                said = f"pytest in the guest exited with {there.returncode}:\n{output.read()}"
                pytest.fail(said, pytrace=False)
            if kernels.KERNELS[vm.state.kernel].debug and (leaks := vm.leaks()):
                pytest.fail("memory of a module has leaked:\n" + "".join(leaks), pytrace=False)

    return run
