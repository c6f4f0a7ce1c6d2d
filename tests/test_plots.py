"""Pictures are drawn for whatever figures a project can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from tipline import plots

if TYPE_CHECKING:
    from pathlib import Path


def assert_picture(path: Path) -> None:
    """The file is a picture of a readable size, with something drawn, and nothing lies beside it."""
    pixels = matplotlib.image.imread(path)
    height, width, _ = pixels.shape
    assert 900 <= width <= 2000
    assert 400 <= height <= 1500
    dark = (pixels[:, :, :3].mean(axis=2) < 0.6).mean()
    assert 0.001 < dark < 0.5
    assert 5_000 < path.stat().st_size < 500_000
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def size(rows: int, **figures: float) -> dict[str, float]:
    values = {"skill": 0.02, "skill_low": 0.01, "skill_high": 0.03, "fit_seconds": 0.5}
    return {"rows": rows, **(values | figures)}


@pytest.mark.parametrize(
    "sizes",
    [
        [size(500), size(2000, skill=0.025), size(8000, skill=0.03)],
        [size(500)],
        [size(100, skill=-4.0, skill_low=-9.0), size(1_000_000, fit_seconds=300)],
        [size(100, skill=0, skill_low=0, skill_high=0, fit_seconds=0)],
    ],
)
def test_a_learning_curve_is_drawn(tmp_path: Path, sizes: list[dict[str, float]]) -> None:
    path = tmp_path / "curve.png"
    plots.learning_curve(path, {"sizes": sizes, "rows": 500})
    assert_picture(path)


def month(name: str, **figures: Any) -> dict[str, Any]:
    values = {"role": "", "mean_probability": 0.4, "tip_rate": 0.45, "skill": 0.02, "auc": 0.9}
    return {"month": name, **(values | figures)}


NONE = dict.fromkeys(("tip_rate", "skill", "auc"))


@pytest.mark.parametrize(
    "months",
    [
        [month("2009-01", role="fit"), month("2009-02", skill=-0.2), month("2009-03", **NONE)],
        [month("2009-01", role="fit")],
        [month("2009-01", **NONE)],
        [month("2009-01", mean_probability=None, **NONE), month("2009-02", mean_probability=None, **NONE)],
        [month(f"20{year}-{number:02d}") for year in range(11, 15) for number in range(1, 13)],
    ],
    ids=["some", "one", "one without labels", "no figures at all", "four years"],
)
def test_months_are_drawn(tmp_path: Path, months: list[dict[str, Any]]) -> None:
    path = tmp_path / "monitoring.png"
    plots.monitoring(path, months)
    assert_picture(path)


@pytest.mark.parametrize("rows", [1, 3, 20, 5000])
@pytest.mark.parametrize("skill", [0.02, -0.5, None])
def test_an_evaluation_is_drawn(tmp_path: Path, rows: int, skill: float | None) -> None:
    generator = np.random.default_rng(1)
    scores = {name: generator.random(rows).astype(np.float32) for name in ("challenger", "champion")}
    report = {"months": ["2009-03"], "rows": rows, "challenger": {"skill": skill}, "champion": {"skill": 0.01}}
    path = tmp_path / "evaluation.png"
    plots.evaluation(path, report, scores, generator.random(rows) < 0.5)
    assert_picture(path)


def test_an_evaluation_without_a_likely_tip_is_drawn(tmp_path: Path) -> None:
    scores = dict.fromkeys(("challenger", "champion"), np.full(50, 0.2, np.float32))
    report = {"months": ["2009-03"], "rows": 50, "challenger": {"skill": 0.1}, "champion": {"skill": 0.1}}
    plots.evaluation(tmp_path / "evaluation.png", report, scores, np.zeros(50, dtype=bool))
    assert_picture(tmp_path / "evaluation.png")


def test_calibration_has_bins_of_equally_many_of_the_likely_rows() -> None:
    probabilities = np.linspace(0, 1, 2000, dtype=np.float32)
    tipped = np.arange(2000) >= 1500
    predicted, observed = plots.calibration(probabilities, tipped)
    assert len(predicted) == len(observed) == plots.CALIBRATION_BINS == 10
    assert predicted == sorted(predicted)
    assert observed == [0.0] * 5 + [1.0] * 5
    assert predicted[0] == pytest.approx(probabilities[1000:1100].mean())


def test_few_rows_have_few_bins() -> None:
    scores = np.array([0.9, 0.1, 0.6], np.float32)
    predicted, observed = plots.calibration(scores, np.array([True, True, False]))
    assert predicted == pytest.approx([0.6, 0.9])
    assert observed == [0.0, 1.0]


def test_the_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        plots.monitoring(tmp_path / name, [month("2009-01"), month("2009-02")])
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
