"""The report in Chromium: light and dark, on a desk and on a phone, for keys and screen readers."""

from pathlib import Path
from typing import Any

import pytest

from coldpress.evaluate.result import Speed, SpeedPoint
from coldpress.report import ReportOptions, report
from tests import made_evaluations

_MMLU = ("abstract_algebra", "philosophy", "sociology", "virology")
_PHONE, _DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section."""
    folder = tmp_path_factory.mktemp("evaluations")
    speed = Speed(3100, 100, 0.02, 60, 0.05, 0.1, 0.2, 0.0, (SpeedPoint(1, 64, 900.0, 77.5),))
    made = made_evaluations.write_all(folder, subjects=_MMLU, speed=speed)
    report(made, folder / "report", ReportOptions())
    return folder / "report"


def test_nothing_is_fetched_and_nothing_is_refused(chromium: Any, written: Path) -> None:
    page = chromium.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{written / 'report.html'}")
    page.wait_for_load_state("networkidle")
    assert asked == [f"file://{written / 'report.html'}"]
    assert said == []  # the page's own policy forbids all but its style: it would complain here
    assert page.locator("figure svg").count() == 6
    assert page.get_by_text("recommended", exact=True).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [_DESK, _PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(chromium: Any, written: Path, scheme: str, size: dict[str, int]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # axe is a script, and the page allows none.
    page = chromium.new_page(color_scheme=scheme, viewport=size, bypass_csp=True)
    page.goto(f"file://{written / 'report.html'}")
    for summary in page.locator("summary").all():
        summary.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_keys_reach_what_scrolls_and_what_opens(chromium: Any, written: Path) -> None:
    page = chromium.new_page(viewport=_PHONE)
    page.goto(f"file://{written / 'report.html'}")
    reached = "Boolean(document.activeElement.closest('summary, a, .scroll'))"
    wanted = page.locator("summary:visible, a:visible, .scroll:visible").count()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        assert page.evaluate(reached)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert wanted > 10
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert summary.locator("xpath=..").get_attribute("open") is not None


def test_the_first_screen_of_a_phone_says_what_to_ship(chromium: Any, written: Path) -> None:
    page = chromium.new_page(viewport=_PHONE)
    page.goto(f"file://{written / 'report.html'}")
    chosen = page.locator("tr.chosen").first
    for cell in range(2):  # its size and its accuracy, without scrolling sideways
        box = chosen.locator("td").nth(cell).bounding_box()
        assert box["x"] + box["width"] <= _PHONE["width"]
    assert page.locator(".headline").bounding_box()["y"] < 200
