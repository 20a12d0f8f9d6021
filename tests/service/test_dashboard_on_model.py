# SPDX-License-Identifier: MIT
"""The dashboard in Chromium, of a nymphd that runs here, on the model."""

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from nymph_vm.host import CHECKOUT
from nymphd_process import Service
from pages import SCHEMES, SIZES, Site, log_in, look, send
from playwright.sync_api import Page, expect

SOURCE = CHECKOUT / "tools/dma_vs_copy.py"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("dashboard") / "state")
    yield running
    running.close()


@pytest.fixture
def site(service: Service) -> Site:
    return Site(service.url, service.token)


def test_reload_keeps_the_peak_of_the_chart(dashboard: Page) -> None:
    """The chart knows the most that has flowed, though the page was not there."""
    throughput = dashboard.locator("#throughput")
    dashboard.get_by_role("button", name="Verify").click()
    expect(throughput).to_have_attribute("aria-label", re.compile(r"at most \S+\sMB/s"))
    most = (throughput.get_attribute("aria-label") or "").partition("at most")[2]
    dashboard.reload()
    expect(throughput).to_have_attribute("aria-label", re.compile(f"at most{re.escape(most)}$"))
    for span in ("Hour", "Day", "5 min"):
        dashboard.locator("#span").get_by_text(span).click()
        expect(dashboard.get_by_label(span)).to_be_checked()
    expect(throughput).to_have_attribute("aria-label", re.compile("at most"))


def test_latency_is_of_the_last_interval(dashboard: Page, service: Service) -> None:
    """Once nothing is copied nothing is said; the ring's life would have a figure for ever."""
    chart = dashboard.locator("#copy-latency")
    dashboard.get_by_role("button", name="Verify").click()
    expect(chart).to_have_attribute("aria-label", re.compile("half of the copies within"))
    expect(chart).to_have_attribute("aria-label", re.compile("no copies in the last interval"))


def test_selection_survives_updates(dashboard: Page) -> None:
    """Telemetry comes every second; it used to replace what is shown."""
    dashboard.get_by_role("button", name="Verify").click()
    expect(dashboard.locator("#ring-hash code")).to_have_text(re.compile("^[0-9a-f]{64}$"))
    select = "(element) => { getSelection().selectAllChildren(element); return getSelection().toString(); }"
    whole = f"() => /^[0-9a-f]{{64}}$/.test(({select})(document.querySelector('#ring-hash code')))"
    dashboard.wait_for_function(whole)  # it may just be replaced by that of a newer verification
    for where in ("#engines .name", "#own-ring dl", "#counters", "#models .said"):
        before = dashboard.locator(where).first.evaluate(select)
        up = dashboard.locator("#uptime").text_content()
        expect(dashboard.locator("#uptime")).not_to_have_text(up or "")
        time.sleep(1.2)
        after = dashboard.evaluate("getSelection().toString()")
        assert before and len(after.splitlines()) == len(before.splitlines()), (where, before, after)


def test_screen_readers_get_the_number_of_entries(dashboard: Page) -> None:
    expect(dashboard.get_by_role("img", name=re.compile(r"^\d+ of 256 entries are active$"))).to_have_count(1)
    expect(dashboard.get_by_role("row", name=re.compile("ring0 model nymphd 0 of 256"))).to_have_count(1)


def test_model_and_profile_can_be_chosen(dashboard: Page) -> None:
    expect(dashboard.get_by_label("Model").locator("option")).to_have_text(["magika"])
    dashboard.get_by_label("Profile").select_option("efficient")
    send(dashboard, "ring.py", SOURCE.read_bytes())
    expect(dashboard.locator("#journey .answer")).to_have_text("Python source")
    expect(dashboard.locator("#journey")).to_contain_text("profile efficient")


def test_events_of_other_days_show_dates(dashboard: Page) -> None:
    expect(dashboard.locator("#events time").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    today = datetime.now()
    dashboard.clock.install(time=today + timedelta(days=1))
    dashboard.reload()
    event = dashboard.locator("#events time").first
    expect(event).to_have_text(re.compile(rf"^{today.day} \w+, \d\d:\d\d:\d\d$"))
    assert str(today.year) in (event.get_attribute("title") or "")


def test_keyboard_reaches_every_control(dashboard: Page) -> None:
    reached = []
    expect(dashboard.locator("#file-model option")).to_have_count(1)
    for _ in range(10):
        dashboard.keyboard.press("Tab")
        reached.append(dashboard.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert reached == [
        "API", "leave", "verify", "rings-table", "span-5-min", "file-model", "file-profile", "chosen",
        "faults", "events",
    ]  # fmt: skip
    dashboard.locator("#span-5-min").focus()
    dashboard.keyboard.press("ArrowRight")
    expect(dashboard.get_by_label("Hour")).to_be_checked()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_lost_contact_turns_the_page_grey(
    new_page: Callable[..., Page], service: Service, site: Site, size: str, scheme: str
) -> None:
    """nymphd hangs, and its connections stay open: nothing on the page looks well, nor in the tab."""
    page = log_in(new_page(size, scheme), site)
    light = page.locator(".verdict .light")
    expect(light).to_have_attribute("data-state", "good")
    mark = "(element) => getComputedStyle(element, '::before').content"
    green = light.evaluate("(element) => getComputedStyle(element).color")
    assert light.evaluate(mark) == '"✓"'
    service.process.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("#contact")).to_have_text("no contact")
        expect(page.get_by_role("alert")).to_have_text(re.compile(r"No contact since \d\d:\d\d:\d\d\."))
        expect(page).to_have_title("✕ no contact · nymphd")
        icon = page.locator("link[rel=icon]")
        expect(icon).to_have_attribute("href", "/static/login/icon-lost.svg")
        assert light.evaluate(mark) == '"?"'
        assert light.evaluate("(element) => getComputedStyle(element).color") != green
        assert page.locator("main").evaluate("(main) => getComputedStyle(main).filter") == "grayscale(1)"
        wrong = look(page, f"lost-{scheme}-{size}")
    finally:
        service.process.send_signal(signal.SIGCONT)
    expect(page.locator("#contact")).to_have_text("live")
    expect(page).to_have_title("nymphd")
    expect(icon).to_have_attribute("href", "/static/login/icon.svg")
    assert light.evaluate(mark) == '"✓"'
    assert wrong == []


def test_refused_models_come_first_with_the_reason(
    new_page: Callable[..., Page], service: Service, tmp_path: Path
) -> None:
    """What is refused is first, with the reason, and can't be chosen."""
    models = tmp_path / "models"
    shutil.copytree(service.folder / "models/magika", models / "zebra")
    (models / "zebra/model.onnx").write_bytes(b"another")
    shutil.copytree(service.folder / "models/magika", models / "magika")
    service_with = Service(tmp_path / "state", models_dir=models)
    try:
        page = new_page(url=service_with.url)
        log_in(page, Site(service_with.url, service_with.token))
        expect(page.locator("#models .name")).to_have_text(["zebra", "magika"])
        expect(page.locator("#models .said").first).to_contain_text("its manifest says")
        expect(page.locator("#inference-state")).to_have_text("1 of 2 models not ready")
        expect(page.locator("#file-model option")).to_have_text(["magika"])
        send(page, "ring.py", SOURCE.read_bytes())
        expect(page.locator("#journey .answer")).to_have_text("Python source")
        facts = page.locator("#inference-facts")
        expect(facts).to_contain_text("So far1")
        with service_with.client() as client:
            client.post("/infer", json={"model": "zebra", "input": "aGVsbG8="})
        expect(facts).to_contain_text("Failed1")
    finally:
        service_with.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dashboard_is_accessible_and_fits_the_screen(
    new_page: Callable[..., Page], site: Site, scheme: str, size: str
) -> None:
    page = log_in(new_page(size, scheme), site)
    send(page, SOURCE.name, SOURCE.read_bytes())
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#journey .answer")).to_have_text("Python source")
    assert look(page, f"model-{scheme}-{size}") == []
