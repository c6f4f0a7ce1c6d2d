"""The pictures in reports/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from tipline import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tipline.metrics import Labels
    from tipline.pyfunc import Probabilities

BLUE, ORANGE, GREY, RED = "#2a6f97", "#e07a1f", "#8a8f98", "#b3261e"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
CALIBRATION_BINS = 10


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def learning_curve(path: Path, decision: Mapping[str, Any]) -> None:
    """Skill by rows with the range over repeats and the chosen size; beside it what a fit takes."""
    rows = [size["rows"] for size in decision["sizes"]]

    def of(name: str) -> list[float]:
        return [np.nan if size[name] is None else size[name] for size in decision["sizes"]]

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        skill, cost = figure.subplots(1, 2, width_ratios=[2, 1])
        skill.fill_between(rows, of("skill_low"), of("skill_high"), color=BLUE, alpha=0.2, label="range over repeats")
        skill.plot(rows, of("skill"), "o-", color=BLUE, label="mean")
        skill.axhline(0, color=GREY, linewidth=1)
        skill.axvline(decision["rows"], color=ORANGE, label=f"chosen: {decision['rows']:,} rows")
        skill.set(title="Skill on the next month", ylabel="log-loss taken off the baseline's")
        skill.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        skill.legend()
        cost.plot(rows, of("fit_seconds"), "o-", color=GREY)
        cost.set(title="Seconds a fit", ylim=(0, None))
        for axes in (skill, cost):
            axes.set(xscale="log", xlabel="rows in the training sample")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        save(figure, path)


def evaluation(path: Path, report: Mapping[str, Any], scores: Mapping[str, Probabilities], tipped: Labels) -> None:
    """Predicted against observed tip rates of both models where tips are likely; beside it skill."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        reliability, bars = figure.subplots(1, 2, width_ratios=[2, 1])
        for (name, values), color, mark in zip(scores.items(), (BLUE, ORANGE), ("o-", "x--"), strict=True):
            reliability.plot(*calibration(values, tipped), mark, color=color, label=name)
        ends = [min(reliability.get_xlim()[0], reliability.get_ylim()[0]), 1]
        reliability.plot(ends, ends, color=GREY, linewidth=1, label="perfect")
        title = f"Calibration on {', '.join(report['months'])}, where a tip is likelier than not"
        reliability.set(title=title, xlabel="mean predicted probability", ylabel="share that tipped")
        for axis in (reliability.xaxis, reliability.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        reliability.legend()
        bars.bar(list(scores), [report[name]["skill"] or 0 for name in scores], color=(BLUE, ORANGE), width=0.6)
        bars.axhline(0, color=GREY, linewidth=1)
        bars.set(title="Skill over the baseline")
        bars.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        save(figure, path)


def calibration(probabilities: Probabilities, tipped: Labels) -> tuple[list[float], list[float]]:
    """Mean prediction and share that tipped, in ten bins of equally many of the rows that are likely to tip.

    The others all have next to no tips, and would fill nine tenths of the picture with one point.
    """
    likely = np.flatnonzero(probabilities > 0.5)  # noqa: PLR2004
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    parts = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [float(probabilities[part].mean()) for part in parts], [float(tipped[part].mean()) for part in parts]


def monitoring(path: Path, months: Sequence[Mapping[str, Any]]) -> None:
    """Over the months: predicted and observed tip rate, skill, AUC; months that the model was made with are marked."""
    names = [month["month"] for month in months]

    def of(name: str) -> list[float]:
        return [np.nan if month[name] is None else month[name] for month in months]

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        rates, skill, auc = figure.subplots(3, 1, sharex=True)
        rates.plot(names, of("mean_probability"), "o-", color=BLUE, label="mean probability")
        rates.plot(names, of("tip_rate"), "x--", color=ORANGE, label="share that tipped")
        rates.set(title="Tips", ylim=(0, None))
        rates.legend()
        skill.bar(names, of("skill"), color=[RED if value < 0 else BLUE for value in of("skill")], width=0.6)
        skill.axhline(0, color=GREY, linewidth=1)
        skill.set(title="Skill over the baseline")
        auc.plot(names, of("auc"), "o-", color=BLUE)
        auc.set(title="Area under the ROC curve")
        for axes in (rates, skill):
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        mark_roles(rates, months)
        auc.tick_params(axis="x", rotation=45 if len(names) > 12 else 0)  # noqa: PLR2004
        save(figure, path)


def mark_roles(axes: Axes, months: Sequence[Mapping[str, Any]]) -> None:
    """Write a month's role above it."""
    for place, month in enumerate(months):
        if month["role"]:
            axes.annotate(month["role"], (place, 1), xycoords=("data", "axes fraction"), ha="center", color=GREY)
