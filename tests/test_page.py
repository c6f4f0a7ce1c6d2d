"""The monitoring page in a browser: narrow and wide, light and dark, offline, and whatever its values are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tipline.evaluation.histograms import Histogram

from tests.test_verdict import make_month, summarize
from tipline.monitoring import page, plots
from tipline.monitoring.counts import Counts

if TYPE_CHECKING:
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


def make_months() -> list[dict[str, Any]]:
    """Make a month for each verdict, with drift, a new category and missing values."""
    drifted = make_month(-0.1)
    drifted.bands[800, 1] = drifted.bands[200, 0] = 1400
    drifted.histograms = {
        "vendor": Histogram(np.array([2000, 500]), 300, {SCRIPT: 500}),
        "fare_amount": Histogram(np.array([100, 2700])),
    }
    counts = [make_month(0.1), drifted, Counts(rows=5), Counts()]
    return [
        {"month": f"2009-0{place + 1}", "role": "train" if place == 0 else "", **summarize(one, reference=REFERENCE)}
        for place, one in enumerate(counts)
    ]


def write_page(folder: Path, months: list[dict[str, Any]]) -> Path:
    plots.plot_monitoring(folder / "monitoring.png", months)
    page.write_page(folder / "index.html", months, folder / "monitoring.png")
    return folder / "index.html"


def test_it_reads_well_offline_at_any_width_light_and_dark(browser: Browser, tmp_path: Path) -> None:
    path, requests, backgrounds, months = write_page(tmp_path, make_months()), [], set(), make_months()
    view = browser.new_page(viewport={"width": 375, "height": 700})
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    for width in (375, 1280):
        view.set_viewport_size({"width": width, "height": 700})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        box = view.get_by_text("✗ retrain").first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 700
    assert view.locator(".scroll").evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
    assert view.locator("img").evaluate("image => image.complete && image.naturalWidth > 900 && image.alt.length > 20")
    for scheme in ("light", "dark"):
        view.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        backgrounds.add(view.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    # Values are text.
    assert (view.title(), view.get_by_text(SCRIPT).count(), view.locator("script").count()) == (
        "tipline: monitoring",
        1,
        0,
    )
    # The verdict is that of the last month with labels, not of the last one.
    assert view.locator(".verdict").inner_text().split("\n")[0] == "2009-02: ✗ retrain"
    assert months[1]["reason"] in view.locator(".verdict").inner_text()
    rows = view.get_by_role("region", name="Drift by feature and month").locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["vendor", "fare_amount", "score"]
    assert f"▲ {months[1]['drift']['features']['vendor']['psi']:.2f}" in rows[0]
    assert f"{months[1]['drift']['features']['fare_amount']['psi']:.2f}*" in rows[1]
    assert "missing: 10.7% of the rows, 0.0% in training" in view.inner_text("body")


def test_one_month_without_rows_has_a_page_and_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    months = [{"month": "2009-01", "role": "", **summarize(Counts())}]
    written = write_page(tmp_path, months).read_bytes()
    assert b"no reference to compare with" in written
    assert write_page(tmp_path, months).read_bytes() == written
