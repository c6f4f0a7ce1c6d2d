"""Pictures are drawn for whatever figures a project can have; the monitoring page reads well in a browser."""

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from playwright.sync_api import Browser

from tests.test_learning_curve import create_noisy_study
from tests.test_verdict import make_month, summarize
from tipline.monitoring import page, plots
from tipline.monitoring.counts import Counts, Histogram
from tipline.training.learning_curve import choose_rows, extend_decision

SCRIPT = "<script>document.title = 'taken over'</script>"
REFERENCE = {
    "rows": 1000,
    "features": {
        "vendor": {"kind": "category", "values": ["CMT"], "counts": [1000, 0, 0], "psi_bound": 0.01},
        "fare_amount": {"kind": "number", "edges": [9], "counts": [500, 500, 0], "psi_bound": None},
    },
    "score": {"edges": [500], "counts": [900, 100], "psi_bound": 0.02},
}


def make_months() -> list[dict[str, Any]]:
    """Make a month for each verdict, with drift, a new category and missing values."""
    drifted = make_month(-0.1)
    drifted.bands[800, 1] = drifted.bands[200, 0] = 1400
    drifted.histograms = {
        "vendor": Histogram(np.array([2000, 500]), 300, Counter({SCRIPT: 500})),
        "fare_amount": Histogram(np.array([100, 2700])),
    }
    counts = [make_month(0.1), drifted, Counts(rows=5), Counts()]
    return [
        {"month": f"2009-0{place}", "role": role, "unusual": ["9.1% quarantined rows"] * (place == 2), **figures}
        for place, (one, role) in enumerate(zip(counts, ["train", "", "", ""], strict=True), 1)
        for figures in [summarize(one, reference=REFERENCE)]
    ]


def test_of_many_features_those_that_drifted_most_come_first_and_the_others_are_folded(
    browser: Browser, tmp_path: Path
) -> None:
    months = make_months()
    for month in months:
        drifts = month["drift"]["features"]
        drifts |= {f"f{number}": drifts["vendor"] | {"psi": number / 1000, "flagged": None} for number in range(200)}
        drifts["f7"] = drifts["f7"] | {"flagged": True}
    view = browser.new_page()
    view.goto(write_page(tmp_path, months).as_uri())
    rows = view.get_by_role("region", name="Drift by feature and month").first.locator("tbody th").all_inner_texts()
    assert {"vendor", "f7"} == {*rows[:2]}
    assert len(rows) == page.SHOWN_FEATURES + 1
    folded = view.get_by_text("182 more features, which drifted less")
    f3 = view.locator("details").get_by_role("rowheader", name="f3", exact=True)
    changes = view.get_by_role("region", name="New and missing values").locator("tbody tr")
    assert changes.last.inner_text() == f"{402 - page.SHOWN_CHANGES} more\tsee months.json\t"
    assert not f3.is_visible()
    folded.click()
    assert f3.is_visible()


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
        box = view.get_by_text("✗ recalibrate").first.bounding_box()
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
    counts = view.get_by_text(SCRIPT).count(), view.locator("script").count()
    assert (view.title(), *counts) == ("tipline: monitoring", 1, 0)
    # The verdict is that of the last month with labels, not of the last one.
    assert view.locator(".verdict").inner_text().split("\n")[0] == "2009-02: ✗ recalibrate"
    assert months[1]["reason"] in view.locator(".verdict").inner_text()
    rows = view.get_by_role("region", name="Drift by feature and month").locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["vendor", "fare_amount", "score"]
    assert f"▲ {months[1]['drift']['features']['vendor']['psi']:.2f}" in rows[0]
    assert f"{months[1]['drift']['features']['fare_amount']['psi']:.2f}*" in rows[1]
    changes = view.get_by_role("region", name="New and missing values").locator("tbody tr").all_inner_texts()
    assert f"vendor\tnew: {SCRIPT} (500 rows)\t2009-02" in changes
    assert "vendor\tmissing (0.0% of the rows in training)\t2009-02: 10.7%" in changes


def test_a_page_of_thirteen_years_opens_at_the_newest_months_and_folds_the_others(
    browser: Browser, tmp_path: Path
) -> None:
    names = [f"{year}-{month:02}" for year in range(2009, 2023) for month in range(1, 13)][:158]
    kinds = make_months()[:3]
    months = [kinds[place % 3] | {"month": name, "role": ""} for place, name in enumerate(names)]
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.goto(write_page(tmp_path, months).as_uri())
    assert view.evaluate("document.documentElement.scrollHeight") < 4000
    shown = view.get_by_role("region", name="Verdict of each month").locator("visible=true").locator("tbody th")
    assert shown.all_inner_texts() == names[: -page.RECENT_MONTHS - 1 : -1]
    folded = view.locator("summary").all_inner_texts()
    assert len(folded) == 13
    assert folded[0].startswith("2021: 8 months: ")
    view.get_by_text("2011: 12 months").click()
    assert view.get_by_role("rowheader", name="2011-07", exact=True).first.is_visible()


def test_one_month_without_rows_has_a_page_and_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    months = [{"month": "2009-01", "role": "", "unusual": [], **summarize(Counts())}]
    written = write_page(tmp_path, months).read_bytes()
    assert b"no reference to compare with" in written
    assert write_page(tmp_path, months).read_bytes() == written


# ---- pictures ----


def assert_picture(path: Path) -> None:
    """The file is a picture of a readable size, with something drawn, and nothing lies beside it."""
    pixels = matplotlib.image.imread(path)
    height, width, _ = pixels.shape
    assert 900 <= width <= 2000
    assert 400 <= height <= 1500
    assert 0.001 < (pixels[:, :, :3].mean(axis=2) < 0.6).mean() < 0.5
    assert 5_000 < path.stat().st_size < 500_000
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("behind", "skill"),
    [([0.3, 0.2, 0.2, 0.2, 0.0], 0.02), ([], 0.02), ([0.2], -4.0), ([0.2], None)],
    ids=["a curve that misses", "one size", "far below zero", "undefined"],
)
def test_a_learning_curve_is_drawn(tmp_path: Path, behind: list[float], skill: float | None) -> None:
    study = create_noisy_study(behind)
    decision = extend_decision(study, choose_rows(study, 0.001, 14_000_000), 14_000_000)
    figures = {"skill": skill, "skill_low": skill and skill - 0.01, "skill_high": skill and 0.03, "fit_seconds": 0.5}
    sizes = [size | figures for size in decision["sizes"]]
    plots.plot_learning_curve(tmp_path / "curve.png", decision | {"sizes": sizes})
    assert_picture(tmp_path / "curve.png")


@pytest.mark.parametrize(("rows", "skill", "segments"), [(1, None, 0), (5000, -0.5, 25)])
def test_an_evaluation_is_drawn(tmp_path: Path, rows: int, skill: float | None, segments: int) -> None:
    generator = np.random.default_rng(1)
    scores = {name: generator.random(rows).astype(np.float32) for name in ("challenger", "champion")[:rows]}
    # One segment is not judged; without segments the gate is not asked.
    segment = {"column": "payment_type", "value": "no charge", "gain": -0.03, "lower": -0.04, "upper": -0.02}
    gate = {
        "gain": {"value": 0.001, "lower": -0.003, "upper": 0.004} if segments else None,
        "tolerated": {"gain": 0.002, "segment": 0.01},
        "segments": [segment | {"gain": None}, *[segment] * (segments - 1)],
    }
    report = {"months": ["2009-03"], "challenger": {"skill": skill}, "champion": {"skill": 0.01}, "gate": gate}
    plots.plot_evaluation(tmp_path / "evaluation.png", report, scores, generator.random(rows) < 0.5)
    assert_picture(tmp_path / "evaluation.png")
