"""The page of monitoring in a browser: narrow and wide, light and dark, offline, and whatever its values are."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conftest import missing
from tests.test_monitor import month_of, told_of
from tipline.evaluation.histograms import Histogram
from tipline.monitoring import page
from tipline.monitoring.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

SCRIPT = "<script>document.title = 'taken over'</script>"
REFERENCE = {
    "rows": 1000,
    "features": {
        "vendor": {"kind": "category", "values": ["CMT"], "counts": [1000, 0, 0], "psi_bound": 0.01},
        "fare_amount": {"kind": "number", "starts": [0, 9], "counts": [500, 500, 0], "psi_bound": None},
    },
    "score": {"starts": [0, 500], "counts": [900, 100], "psi_bound": 0.02},
}


def month(number: int, counts: Counts) -> dict[str, Any]:
    role = "fit" if number == 1 else ""
    return {"month": f"2009-{number:02d}", "role": role, **told_of(counts, reference=REFERENCE)}


def months() -> list[dict[str, Any]]:
    """One of each verdict, with drift, a new category and missing values."""
    drifted = month_of(-0.1)
    drifted.bands[800, 1] = drifted.bands[200, 0] = 1400
    drifted.histograms = {
        "vendor": Histogram(np.array([2000, 500]), 300, {SCRIPT: 500}),
        "fare_amount": Histogram(np.array([100, 2700])),
    }
    return [month(1, month_of(0.1)), month(2, drifted), month(3, Counts(rows=5)), month(4, Counts())]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    page.write_page(path, months())
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        missing("no chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright")
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", *flags])
        yield started
        started.close()


def test_it_reads_well_offline_at_any_width_light_and_dark(browser: Browser, written: Path) -> None:
    asked, backgrounds = [], {}
    view = browser.new_page(viewport={"width": 375, "height": 700})
    view.on("request", lambda request: asked.append(request.url))
    view.goto(written.as_uri())
    for width in (375, 1280):
        view.set_viewport_size({"width": width, "height": 700})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        box = view.get_by_text("✗ retrain").first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 700
    assert view.locator(".scroll").evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
    for scheme in ("light", "dark"):
        view.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        backgrounds[scheme] = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert backgrounds["light"] != backgrounds["dark"]
    assert asked == [written.as_uri()]


def test_values_are_text_whatever_they_are(browser: Browser, written: Path) -> None:
    view = browser.new_page()
    view.goto(written.as_uri())
    assert view.title() == "tipline: monitoring"
    assert view.get_by_text(SCRIPT).count() == 1
    assert not view.locator("script").count()


def test_verdict_comes_first_then_why_then_the_figures(browser: Browser, written: Path) -> None:
    view = browser.new_page()
    view.goto(written.as_uri())
    told = months()
    # The last month with known targets, not the last one.
    assert view.locator(".verdict").inner_text().split("\n")[0] == "2009-02: ✗ retrain"
    assert told[1]["reason"] in view.locator(".verdict").inner_text()
    assert view.locator("h2").all_inner_texts() == [
        "Verdict of each month",
        "Skill",
        "Expected and realised tips",
        "Reliability",
        "Drift",
        "Skill by group",
        "All figures",
    ]
    rows = view.get_by_role("region", name="Drift by feature and month").locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["vendor", "fare_amount", "the score"]
    psi = told[1]["drift"]["features"]
    assert f"▲ {psi['vendor']['psi']:.2f}" in rows[0]
    assert f"{psi['fare_amount']['psi']:.2f}*" in rows[1]
    assert "10.7% of the rows, 0.0% in training" in view.inner_text("body")
    # Words beside each chart for those who do not see it.
    assert all(
        view.locator("svg").nth(place).get_attribute("aria-label") for place in range(view.locator("svg").count())
    )


def test_one_month_without_rows_has_a_page(tmp_path: Path) -> None:
    page.write_page(tmp_path / "index.html", [{"month": "2009-01", "role": "", **told_of(Counts())}])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "No month has a known target." in text
    assert "carries no reference" in text


def test_the_same_figures_are_the_same_bytes(tmp_path: Path, written: Path) -> None:
    page.write_page(tmp_path / "index.html", months())
    assert (tmp_path / "index.html").read_bytes() == written.read_bytes()


@pytest.mark.parametrize(("step", "expected"), [(0.013, 0.02), (0.02, 0.02), (0.3, 0.5), (0.7, 1.0), (4e-9, 5e-9)])
def test_charts_have_round_ticks(step: float, expected: float) -> None:
    assert page.nice(step) == pytest.approx(expected)
