# SPDX-License-Identifier: MIT
"""nymphd in a VM, and the dashboard in Chromium, for all tests of a file."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from nymph_vm import nymphd
from nymph_vm.machine import Machine
from nymphd_served import Served

if TYPE_CHECKING:
    from pages import Site
    from playwright.sync_api import Browser, BrowserContext, Page


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, help="How long test_nymphd_soak.py lasts.")


@pytest.fixture(scope="module")
def served_by() -> Iterator[Served]:
    with Machine(f"pytest-{os.getpid()}-nymphd", image="systemd") as machine:
        yield Served(machine, nymphd.reach(machine))


@pytest.fixture
def served(served_by: Served) -> Iterator[Served]:
    """nymphd under systemd, in a machine for all tests of a file; the kernel's log stays clean."""
    yield served_by
    # Which pytest shows if it failed.
    print(served_by.machine.run(["journalctl", "-o", "cat", "-n", "50", "-u", "nymphd"]).stdout)
    assert (served_by.machine.complaints(), served_by.machine.taint()) == ([], 0)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program, "chromium not found: `tools/setup browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: "Browser", site: "Site") -> Iterator[Callable[..., "Page"]]:
    """new_page(size, scheme) opens the login page. Whatever the browser complains of fails the test."""
    from pages import SECONDS, SIZES

    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(size: str = "desktop", scheme: str = "light", url: str = site.url) -> "Page":
        width, height = SIZES[size]
        context = browser.new_context(
            base_url=url,
            ignore_https_errors=True,  # nobody has signed the certificate but itself
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": height},
            device_scale_factor=2 if size == "phone" else 1,
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("request", lambda request: complaints.append(request.url) if foreign(request.url) else None)
        page.goto("/")
        return page

    def foreign(url: str) -> bool:
        return not re.match(r"(https://localhost:\d+/|blob:|data:)", url.replace("wss:", "https:"))

    yield open_page
    for context in contexts:
        context.close()
    expected = (
        r"Failed to load resource: .*(401|413|ERR_)|WebSocket connection to .* failed"  # tests' own doing
    )
    assert [each for each in complaints if not re.match(expected, each)] == []


@pytest.fixture
def dashboard(new_page: Callable[..., "Page"], site: "Site") -> "Page":
    from pages import log_in

    return log_in(new_page(), site)
