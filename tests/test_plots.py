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
    assert 0.001 < (pixels[:, :, :3].mean(axis=2) < 0.6).mean() < 0.5
    assert 5_000 < path.stat().st_size < 500_000
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def make_size(rows: int, seconds: float = 0.5, **given: float | None) -> dict[str, float | None]:
    skill = {"skill": 0.02, "skill_low": 0.01, "skill_high": 0.03, **given}
    sets = {f"{name}.{figure}": value for name in ("held_out", "validation") for figure, value in skill.items()}
    return {"rows": rows, "fit_seconds": seconds, **sets}


UNKNOWN_SKILL: dict[str, Any] = dict.fromkeys(("skill", "skill_low", "skill_high"))


def test_learning_curves_are_drawn(tmp_path: Path) -> None:
    rows = np.geomspace(500, 14_000_000, 40)
    bounds = {name: 0.03 + shift - rows**-0.5 for name, shift in (("low", -0.01), ("skill", 0), ("high", 0.01))}
    law = {"rows": rows, **bounds, "exponent": 0.5, "misses": 1}
    studies = [
        ([make_size(rows) for rows in (500, 2000, 8000, 20_000)], law),
        ([make_size(500)], None),
        ([make_size(100, skill=-4.0, skill_low=-9.0), make_size(1_000_000, 300)], None),
        ([make_size(100, **UNKNOWN_SKILL), make_size(1000, **UNKNOWN_SKILL)], None),
    ]
    for sizes, power_law in studies:
        plots.plot_learning_curve(tmp_path / "curve.png", {"sizes": sizes, "rows": 500, "power_law": power_law})
        assert_picture(tmp_path / "curve.png")


def make_gate(segments: int) -> dict[str, Any]:
    """Make a gate's report with this many segments, one of which is not judged; without segments it is not asked."""
    segment = {"column": "payment_type", "value": "no charge", "gain": -0.03, "lower": -0.04, "upper": -0.02}
    gain = {"value": 0.001, "lower": -0.003, "upper": 0.004} if segments else None
    tolerated = {"gain": 0.002, "segment": 0.01}
    return {"gain": gain, "tolerated": tolerated, "segments": [segment | {"gain": None}, *[segment] * (segments - 1)]}


@pytest.mark.parametrize(("rows", "skill", "segments"), [(1, None, 0), (50, 0.02, 1), (5000, -0.5, 25)])
def test_an_evaluation_is_drawn(tmp_path: Path, rows: int, skill: float | None, segments: int) -> None:
    generator = np.random.default_rng(1)
    scores = {name: generator.random(rows).astype(np.float32) for name in ("challenger", "champion")[:rows]}
    figures = {"challenger": {"skill": skill}, "champion": {"skill": 0.01}}
    report = {"months": ["2009-03"], "rows": rows, **figures, "gate": make_gate(segments)}
    plots.plot_evaluation(tmp_path / "evaluation.png", report, scores, generator.random(rows) < 0.5)
    assert_picture(tmp_path / "evaluation.png")


def make_month(name: str, **figures: Any) -> dict[str, Any]:
    values = {"role": "", "mean_probability": 0.4, "tip_rate": 0.45, "skill": 0.02, "auc": 0.9}
    calibration = [{"predicted": value, "observed": value} for value in (0.1, 0.9)]
    return {"month": name, **values, "skill_low": 0.01, "skill_high": 0.03, "calibration": calibration, **figures}


UNKNOWN: dict[str, Any] = dict.fromkeys(("tip_rate", "skill", "skill_low", "skill_high", "auc")) | {"calibration": []}


def test_months_are_drawn(tmp_path: Path) -> None:
    some = [make_month("2009-01", role="train"), make_month("2009-02", skill=-0.2, skill_low=-0.3)]
    unknown = make_month("2009-03", **UNKNOWN)
    unbounded = make_month("2009-01", skill_low=None, skill_high=None)
    many = [make_month(f"20{year}-{number:02d}") for year in range(11, 15) for number in range(1, 13)]
    for months in ([*some, unknown], [unbounded], [unknown | {"mean_probability": None}], many):
        plots.plot_monitoring(tmp_path / "monitoring.png", months)
        assert_picture(tmp_path / "monitoring.png")
