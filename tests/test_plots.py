"""Pictures are drawn for whatever figures a project can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from tipline.monitoring import plots

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


def size(rows: int, **figures: float | None) -> dict[str, float | None]:
    values: dict[str, float | None] = {"rows": rows, "fit_seconds": 0.5}
    for name in ("held_out", "size"):
        values |= {f"{name}.skill": 0.02, f"{name}.skill_low": 0.01, f"{name}.skill_high": 0.03}
    return values | figures


def law(rows: int) -> dict[str, Any]:
    places = np.geomspace(500, rows, 40)
    low, skill, high = ((0.03 + shift - places**-0.5).tolist() for shift in (-0.01, 0, 0.01))
    return {"rows": places.tolist(), "low": low, "skill": skill, "high": high, "exponent": 0.5, "misses": 1}


NO_SKILL = {name: None for name in size(1) if ".skill" in name}


@pytest.mark.parametrize(
    ("sizes", "power_law"),
    [
        ([size(500), size(2000), size(8000), size(20_000)], law(100_000)),
        ([size(500), size(2000), size(8000), size(20_000)], law(14_000_000)),
        ([size(500)], None),
        (
            [size(100, **{"validation.skill": -4.0, "validation.skill_low": -9.0}), size(1_000_000, fit_seconds=300)],
            None,
        ),
        ([size(100, **NO_SKILL), size(1000, **NO_SKILL)], None),
    ],
    ids=["near", "far", "one size", "far apart", "nothing to gain"],
)
def test_a_learning_curve_is_drawn(
    tmp_path: Path, sizes: list[dict[str, float | None]], power_law: dict[str, Any] | None
) -> None:
    path = tmp_path / "curve.png"
    plots.plot_learning_curve(path, {"sizes": sizes, "rows": 500, "power_law": power_law, "bytes_a_row": 640})
    assert_picture(path)


def month(name: str, **figures: Any) -> dict[str, Any]:
    values = {"role": "", "mean_probability": 0.4, "tip_rate": 0.45, "skill": 0.02, "auc": 0.9}
    values |= {"skill_low": 0.01, "skill_high": 0.03}
    return {"month": name, **(values | figures)}


NONE = dict.fromkeys(("tip_rate", "skill", "skill_low", "skill_high", "auc"))


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
    plots.plot_monitoring(path, months)
    assert_picture(path)


REFUSED: dict[str, Any] = {"gain": None, "segments": []}


def judged(segments: int) -> dict[str, Any]:
    """Make a verdict with so many segments, one of which vetoes and one of which is not judged."""
    gains = {"gain": -0.03, "lower": -0.04, "upper": -0.02, "veto": True}
    segment = {"column": "payment_type", "value": "no charge", **gains}
    gain = {"value": 0.001, "lower": -0.003, "upper": 0.004}
    others = [{**segment, "gain": 0.001, "veto": False}] * (segments - 2)
    return {
        "gain": gain,
        "tolerated": {"gain": 0.002, "segment": 0.01},
        "segments": [segment, {**segment, "gain": None}, *others] if segments else [],
    }


def evaluated(rows: int, skill: float | None, verdict: dict[str, Any]) -> dict[str, Any]:
    figures = {"challenger": {"skill": skill}, "champion": {"skill": 0.01}}
    return {"months": ["2009-03"], "rows": rows, **figures, "gate": verdict}


@pytest.mark.parametrize(
    ("rows", "skill", "verdict"),
    [
        (1, 0.02, REFUSED),
        (3, None, REFUSED),
        (5000, -0.5, judged(0)),
        (5000, 0.02, judged(12)),
        (20, 0.02, judged(25)),
    ],
)
def test_an_evaluation_is_drawn(tmp_path: Path, rows: int, skill: float | None, verdict: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    scores = {name: generator.random(rows).astype(np.float32) for name in ("challenger", "champion")}
    path = tmp_path / "evaluation.png"
    plots.plot_evaluation(path, evaluated(rows, skill, verdict), scores, generator.random(rows) < 0.5)
    assert_picture(path)


def test_an_evaluation_without_a_likely_tip_or_a_champion_that_scores_is_drawn(tmp_path: Path) -> None:
    scores = {"challenger": np.full(50, 0.2, np.float32)}
    path = tmp_path / "evaluation.png"
    plots.plot_evaluation(path, evaluated(50, 0.1, REFUSED), scores, np.zeros(50, dtype=bool))
    assert_picture(path)


def test_calibration_has_bins_of_equally_many_of_the_likely_rows() -> None:
    probabilities = np.linspace(0, 1, 2000, dtype=np.float32)
    labels = np.arange(2000) >= 1500
    predicted, observed = plots.calibration(probabilities, labels)
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
        plots.plot_monitoring(tmp_path / name, [month("2009-01"), month("2009-02")])
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
