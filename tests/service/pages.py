# SPDX-License-Identifier: MIT
"""The dashboard in a browser: what its tests do to it and keep of it. Pictures are in dist/dashboard/."""

from dataclasses import dataclass

from axe_playwright_python.sync_playwright import Axe
from nymph_vm.host import CHECKOUT
from playwright.sync_api import Page, expect

PICTURES = CHECKOUT / "dist/dashboard"
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
SECONDS = 300  # the guest's CPU is emulated, and onnxruntime slow on a busy host

expect.set_options(timeout=SECONDS * 1000)


@dataclass(frozen=True)
class Site:
    """A running nymphd, as a browser needs it."""

    url: str
    token: str


def log_in(page: Page, site: Site) -> Page:
    page.get_by_label("Token").fill(site.token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#contact")).to_have_text("live")
    return page


def send(page: Page, name: str, content: bytes) -> None:
    page.get_by_label("Drop a file here").set_input_files({"name": name, "mimeType": "", "buffer": content})


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def look(page: Page, name: str) -> list[str]:
    """Keep a picture; what axe finds serious, and whether the page is wider than the screen."""
    picture(page, name)
    violations = Axe().run(page).response["violations"]
    found = [each for each in violations if each["impact"] in ("serious", "critical")]
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    wrong = [f"{name}: {each['id']}: {each['nodes'][0]['html']}" for each in found]
    return wrong + [f"{name}: wider than the screen"] * wide
