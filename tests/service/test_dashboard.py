# SPDX-License-Identifier: MIT
"""The dashboard in Chromium, of a nymphd that systemd runs in the VM. Its pictures are in dist/dashboard/."""

import base64
import re
from collections.abc import Callable

import httpx
import pytest
from blake3 import blake3
from nymph_vm.faults import Fault
from nymph_vm.host import CHECKOUT
from nymphd_served import Served
from pages import SCHEMES, SECONDS, SIZES, Site, log_in, look, picture, send
from playwright.sync_api import Page, expect

SOURCE = CHECKOUT / "tools/dma_vs_copy.py"
OPEN_TO_ALL = ("/login", "/static/login/style.css", "/static/login/login.js", "/static/login/icon.svg")


@pytest.fixture
def site(served: Served) -> Site:
    return Site(served.service.url, served.service.token)


def test_session_begins_with_the_token_and_ends_with_logout(
    new_page: Callable[..., Page], site: Site
) -> None:
    page = new_page()
    expect(page).to_have_url(re.compile("/login$"))
    page.get_by_label("Token").fill("no token of ours")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    log_in(page, site)
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == ("__Host-nymphd", True, True)
    assert cookie["sameSite"] == "Strict"
    assert site.token not in page.content()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto("/")
    expect(page).to_have_url(re.compile("/login$"))


def test_pages_load_only_their_own_files(served: Served) -> None:
    with httpx.Client(base_url=served.service.url, verify=False, timeout=SECONDS) as client:
        for path in OPEN_TO_ALL:
            assert client.get(path).status_code == 200
        assert client.get("/static/dashboard.js").status_code == 401
        assert client.get("/static/login/%2e%2e/dashboard.js").status_code == 401
        page = client.get("/", headers=served.service.bearer)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script>|\bon\w+=|style=|https?://", page.text)


def test_engines_and_rings_agree_with_status(dashboard: Page, served: Served) -> None:
    with httpx.Client(base_url=served.service.url, verify=False, timeout=SECONDS) as client:
        status = client.get("/status", headers=served.service.bearer).json()
    expect(dashboard.locator("#engines .name")).to_have_text([each["name"] for each in status["engines"]])
    expect(dashboard.locator("#engines .light[data-state=good]")).to_have_count(len(status["engines"]))
    expect(dashboard.locator("#board")).to_contain_text(status["board_id"])
    own = next(each for each in status["rings"] if each["mine"] and each["engine"] == status["engine"])
    expect(dashboard.locator("#own-ring")).to_contain_text(f"of {own['entries']}")
    shown = dashboard.locator("#rings th")
    expect(shown).to_have_text([ring["name"] for ring in status["rings"]], use_inner_text=False)


def test_verify_button_shows_equal_hashes(dashboard: Page) -> None:
    dashboard.get_by_role("button", name="Verify").click()
    expect(dashboard.locator("#verdict")).to_have_text(re.compile("All .* copy every byte"))
    expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "good")
    driver, recomputed = (
        dashboard.locator(f"#{name} code").text_content() for name in ("ring-hash", "recomputed-hash")
    )
    assert driver == recomputed
    assert re.fullmatch("[0-9a-f]{64}", driver or "")


@pytest.mark.parametrize("how", ["chosen", "dropped"])
def test_a_file_is_copied_verified_and_classified(dashboard: Page, how: str) -> None:
    """Its digest is that of the file, whoever computes it; its name is text, whatever is in it."""
    content, name = SOURCE.read_bytes(), "<img src=x onerror=alert(1)>.py"
    if how == "chosen":
        send(dashboard, name, content)
    else:
        transfer = dashboard.evaluate_handle(
            """([name, content]) => {
                const transfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
                return transfer;
            }""",
            [name, base64.b64encode(content).decode()],
        )
        dashboard.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    journey = dashboard.locator("#journey")
    expect(journey.locator(".answer")).to_have_text("Python source")
    expect(journey.locator("li .light[data-state=good]")).to_have_count(4)
    expect(journey).to_contain_text(name)
    digest = blake3(content).hexdigest()
    expect(journey.locator(".hash code")).to_have_text([digest, digest])
    expect(dashboard.locator("#events")).to_contain_text("classified")


def test_empty_and_large_files_are_refused(dashboard: Page) -> None:
    send(dashboard, "nothing", b"")
    expect(dashboard.locator("#journey")).to_contain_text("The file is empty")
    send(dashboard, "large", bytes(9 << 20))
    expect(dashboard.locator("#journey")).to_contain_text("413")


def test_lying_engine_is_shown(dashboard: Page, served: Served) -> None:
    """A bit is flipped in each copy: light and log say so, and the file arrives all the same."""
    endpoint = served.machine.endpoints["ep0"]
    endpoint.set_faults(Fault("flip"))
    try:
        dashboard.get_by_role("button", name="Verify").click()
        expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "bad")
        expect(dashboard.locator("#verdict")).to_contain_text("not to be trusted")
        expect(dashboard.locator("#faults b").first).to_contain_text("dma0chan0")
        expect(dashboard.locator("#engines .name").first).to_have_text("dma0chan0")  # what failed is first
        # All channels of the endpoint lie, and by now the others may be found wanting, too.
        title = re.compile(r"^✕ (dma0chan0 is|\d engines are) not to be trusted · nymphd$")
        expect(dashboard).to_have_title(title)
        send(dashboard, "truth.py", SOURCE.read_bytes())
        expect(dashboard.locator("#journey .answer")).to_have_text("Python source")
        picture(dashboard, "fault-light-desktop")
    finally:
        endpoint.set_faults()
    dashboard.get_by_role("button", name="Verify").click()
    expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "good")


def test_unplugged_engine_is_shown(dashboard: Page, served: Served) -> None:
    served.machine.unplug("ep0")
    try:
        gone = dashboard.locator("#engines li", has_text="dma0chan0")
        expect(gone.locator(".light")).to_have_attribute("data-state", "bad")
        expect(gone).to_contain_text("unplugged")
    finally:
        served.machine.plug("ep0")
    expect(dashboard.locator("#events")).to_contain_text(re.compile("dma.chan. appeared"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_are_accessible_and_fit_the_screen(
    new_page: Callable[..., Page], site: Site, scheme: str, size: str
) -> None:
    """Both pages: axe finds nothing serious, nothing is wider than the screen, and how they look is kept."""

    page = new_page(size, scheme)
    wrong = look(page, f"login-{scheme}-{size}")
    log_in(page, site)
    send(page, SOURCE.name, SOURCE.read_bytes())
    for _ in range(3):
        page.get_by_role("button", name="Verify").click()
        expect(page.get_by_role("button", name="Verify")).to_be_enabled()
    expect(page.locator("#journey .answer")).to_have_text("Python source")
    wrong += look(page, f"dashboard-{scheme}-{size}")
    assert wrong == []


def test_lost_contact_is_shown_until_nymphd_is_back(dashboard: Page, served: Served, site: Site) -> None:
    """nymphd is started again, and all sessions have ended."""
    served.machine.run(["systemctl", "stop", "nymphd"])
    expect(dashboard.get_by_role("status")).to_have_text("no contact")
    served.machine.run(["systemctl", "start", "nymphd"])
    expect(dashboard).to_have_url(re.compile("/login$"))
    log_in(dashboard, site)
