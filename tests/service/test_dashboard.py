# SPDX-License-Identifier: MIT
"""The dashboard in Chromium, of a nymphd that systemd runs in the VM. Its pictures are in dist/dashboard/."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from blake3 import blake3
from nymph_vm.faults import Fault
from nymph_vm.host import CHECKOUT
from nymphd_served import Served
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PICTURES = CHECKOUT / "dist/dashboard"
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
SECONDS = 300  # the guest's CPU is emulated, and onnxruntime slow on a busy host

SOURCE = CHECKOUT / "tools/dma_vs_copy.py"
OPEN_TO_ALL = ("/login", "/static/login/style.css", "/static/login/login.js", "/static/login/icon.svg")

expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "chromium not found: `vm/setup browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """new_page(size, scheme) opens the login page. Whatever the browser complains of fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(size: str = "desktop", scheme: str = "light") -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            base_url=served.service.url,
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
        return not re.match(rf"({re.escape(served.service.url)}|blob:|data:)", url.replace("wss:", "https:"))

    yield open_page
    for context in contexts:
        context.close()
    expected = (
        r"Failed to load resource: .*(401|413|ERR_)|WebSocket connection to .* failed"  # tests' own doing
    )
    assert [each for each in complaints if not re.match(expected, each)] == []


def log_in(page: Page, served: Served) -> Page:
    page.get_by_label("Token").fill(served.service.token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("status")).to_have_text("live")
    return page


@pytest.fixture
def dashboard(new_page: Callable[..., Page], served: Served) -> Page:
    return log_in(new_page(), served)


def send(page: Page, name: str, content: bytes) -> None:
    page.get_by_label("Drop a file here").set_input_files({"name": name, "mimeType": "", "buffer": content})


def test_logging_in_and_out(new_page: Callable[..., Page], served: Served) -> None:
    page = new_page()
    expect(page).to_have_url(re.compile("/login$"))
    page.get_by_label("Token").fill("no token of ours")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    log_in(page, served)
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == ("__Host-nymphd", True, True)
    assert cookie["sameSite"] == "Strict"
    assert served.service.token not in page.content()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto("/")
    expect(page).to_have_url(re.compile("/login$"))


def test_nothing_inline_and_nothing_from_elsewhere(served: Served) -> None:
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


def test_engines_and_rings_are_those_of_status(dashboard: Page, served: Served) -> None:
    with httpx.Client(base_url=served.service.url, verify=False, timeout=SECONDS) as client:
        status = client.get("/status", headers=served.service.bearer).json()
    expect(dashboard.locator("#engines .name")).to_have_text([each["name"] for each in status["engines"]])
    expect(dashboard.locator("#engines .light[data-state=good]")).to_have_count(len(status["engines"]))
    expect(dashboard.locator("#board")).to_contain_text(status["board_id"])
    own = next(each for each in status["rings"] if each["mine"] and each["engine"] == status["engine"])
    expect(dashboard.locator("#rings .mine")).to_contain_text(f"of {own['entries']}")


def test_verify_now(dashboard: Page) -> None:
    dashboard.get_by_role("button", name="Verify").click()
    expect(dashboard.locator("#verdict")).to_have_text(re.compile("All .* copy every byte"))
    expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "good")
    driver, recomputed = (
        dashboard.locator(f"#{name} .hash").get_attribute("title")
        for name in ("ring-hash", "recomputed-hash")
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
    assert [each.get_attribute("title") for each in journey.locator(".hash").all()] == [digest, digest]
    expect(dashboard.locator("#events")).to_contain_text("classified")


def test_what_cannot_be_sent(dashboard: Page) -> None:
    send(dashboard, "nothing", b"")
    expect(dashboard.locator("#journey")).to_contain_text("The file is empty")
    send(dashboard, "large", bytes(9 << 20))
    expect(dashboard.locator("#journey")).to_contain_text("413")


def test_the_keyboard_is_enough(dashboard: Page) -> None:
    reached = []
    for _ in range(8):
        dashboard.keyboard.press("Tab")
        reached.append(dashboard.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached[:5] == ["API", "leave", "verify", "chosen", "faults"]


def test_a_lying_engine_is_shown(dashboard: Page, served: Served) -> None:
    """A bit is flipped in each copy: light and log say so, and the file arrives all the same."""
    endpoint = served.machine.endpoints["ep0"]
    endpoint.set_faults(Fault("flip"))
    try:
        dashboard.get_by_role("button", name="Verify").click()
        expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "bad")
        expect(dashboard.locator("#verdict")).to_contain_text("not to be trusted")
        expect(dashboard.locator("#faults b").first).to_contain_text("dma0chan0")
        send(dashboard, "truth.py", SOURCE.read_bytes())
        expect(dashboard.locator("#journey .answer")).to_have_text("Python source")
        picture(dashboard, "fault-light-desktop")
    finally:
        endpoint.set_faults()
    dashboard.get_by_role("button", name="Verify").click()
    expect(dashboard.locator(".verdict .light")).to_have_attribute("data-state", "good")


def test_an_unplugged_engine_is_shown(dashboard: Page, served: Served) -> None:
    served.machine.unplug("ep0")
    try:
        gone = dashboard.locator("#engines li", has_text="dma0chan0")
        expect(gone.locator(".light")).to_have_attribute("data-state", "bad")
        expect(gone).to_contain_text("unplugged")
    finally:
        served.machine.plug("ep0")
    expect(dashboard.locator("#events")).to_contain_text(re.compile("dma.chan. appeared"))


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_and_accessibility(
    new_page: Callable[..., Page], served: Served, scheme: str, size: str
) -> None:
    """Both pages: axe finds nothing serious, nothing is wider than the screen, and how they look is kept."""

    def look(name: str) -> list[str]:
        picture(page, f"{name}-{scheme}-{size}")
        found = Axe().run(page).response["violations"]
        found = [each for each in found if each["impact"] in ("serious", "critical")]
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        wrong = [f"{name}: {each['id']}: {each['nodes'][0]['html']}" for each in found]
        return wrong + ["wider than the screen"] * wide

    page = new_page(size, scheme)
    wrong = look("login")
    log_in(page, served)
    send(page, SOURCE.name, SOURCE.read_bytes())
    for _ in range(3):
        page.get_by_role("button", name="Verify").click()
        expect(page.get_by_role("button", name="Verify")).to_be_enabled()
    expect(page.locator("#journey .answer")).to_have_text("Python source")
    wrong += look("dashboard")
    assert wrong == []


def test_contact_is_lost_and_found(dashboard: Page, served: Served) -> None:
    """nymphd is started again, and has forgotten who was logged in."""
    served.machine.run(["systemctl", "stop", "nymphd"])
    expect(dashboard.get_by_role("status")).to_have_text("no contact")
    served.machine.run(["systemctl", "start", "nymphd"])
    expect(dashboard).to_have_url(re.compile("/login$"))
    log_in(dashboard, served)
