"""Draw the pictures in reports/."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

from tipline import files
from tipline.arrays import Floats, Labels, Probabilities
from tipline.monitoring.counts import BANDS, assign_band
from tipline.monitoring.verdict import compute_calibration

BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8a8f98"
STYLE: dict[Any, Any] = {"axes.grid": True, "axes.titlelocation": "left", "axes.titlesize": "medium"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25}
COLORS, MARKS = {"challenger": BLUE, "champion": ORANGE}, {"challenger": "o-", "champion": "x--"}
ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "frameon": False}  # of a legend
MONTH_LABELS = 24  # at most
FLAT_LABELS = 12  # more months have slanted labels
CALIBRATION_MONTHS = 12  # the last months are drawn; months.json has all
PANELS = 6  # squares of calibration side by side


@contextlib.contextmanager
def create_picture(path: Path, height: float) -> Iterator[Figure]:
    with mpl.rc_context(STYLE), files.replace_file(path) as temporary:
        figure = Figure(figsize=(9, height), layout="constrained")
        yield figure
        figure.savefig(temporary, format="png", dpi=130)


def format_percent(*axes: Axis) -> None:
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1, decimals=None))


def draw_calibration(axes: Axes, points: Sequence[Mapping[str, Any]], name: str) -> None:
    predicted, observed = get_column(points, "predicted"), get_column(points, "observed")
    axes.plot(predicted, observed, MARKS[name], color=COLORS[name], label=name, markersize=4)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1)


def get_column(rows: Sequence[Mapping[str, Any]], name: str) -> Floats:
    return np.array([row[name] for row in rows], float)


def plot_learning_curve(path: Path, decision: Mapping[str, Any]) -> None:
    sizes, curve = decision["sizes"], decision["fitted_curve"]
    rows = [size["rows"] for size in sizes]
    with create_picture(path, 4.8) as figure:
        skill = figure.subplots()
        low, mean, high = (get_column(sizes, name) for name in ("skill_low", "skill", "skill_high"))
        skill.fill_between(rows, low, high, color=BLUE, alpha=0.15, linewidth=0)
        skill.plot(rows, mean, "o", color=BLUE, label="validation months", markersize=4)
        if curve:
            misfit = f", misses {curve['misses']} of {len(sizes)} sizes" if curve["misses"] else ""
            skill.plot(curve["rows"], curve["skill"], "--", color=BLUE, linewidth=1.2, label=f"fitted curve{misfit}")
            skill.plot(curve["rows"], curve["low"], ":", curve["rows"], curve["high"], ":", color=BLUE, linewidth=0.8)
        skill.axhline(0, color=GREY, linewidth=1)
        skill.axvline(decision["rows"], color=ORANGE, label=f"chosen: {decision['rows']:,} rows")
        skill.set(title="Skill over the baseline, with 90% intervals", xscale="log")
        format_percent(skill.yaxis)
        figure.legend(*skill.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        skill.set(xlabel="rows in the training sample")
        skill.xaxis.set_major_formatter(EngFormatter(sep=""))
        skill.xaxis.set_minor_formatter(NullFormatter())


def plot_evaluation(path: Path, report: Mapping[str, Any], scores: Mapping[str, Probabilities], labels: Labels) -> None:
    """Draw the calibration of the models, and below it the gains that the gate judged."""
    gains = [segment for segment in report["gate"]["segments"] if segment["gain"] is not None]
    heights = [4, 1.6 + 0.22 * len(gains)] if report["gate"]["gain"] else [4]
    with create_picture(path, sum(heights)) as figure:
        calibration, *below = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for name, values in scores.items():
            bands = np.bincount(assign_band(values) * 2 + labels, minlength=2 * BANDS).reshape(BANDS, 2)
            draw_calibration(calibration, compute_calibration(bands), name)
        calibration.set(title=f"Calibration on {', '.join(report['months'])}")
        calibration.set(xlabel="mean score", ylabel="observed positive rate")
        format_percent(calibration.xaxis, calibration.yaxis)
        if scores:
            calibration.legend()
        for axes in below:
            draw_gains(axes, report["gate"], gains)


def draw_gains(axes: Axes, gate: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> None:
    rows = [gate["gain"] | {"gain": gate["gain"]["value"], "column": "all", "value": "rows"}, *segments]
    low, gain, high = (get_column(rows, name) for name in ("lower", "gain", "upper"))
    axes.errorbar(gain, range(len(rows)), xerr=(gain - low, high - gain), fmt="o", color=BLUE)
    axes.set_yticks(range(len(rows)), [f"{row['column']} {row['value']}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    overall, segment = (-gate["tolerated"][name] for name in ("gain", "segment"))
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(overall, color=ORANGE, label="tolerated: the lower bound of all rows is right of it")
    axes.axvline(segment, color=ORANGE, ls="--", label="tolerated: no segment's upper bound is left of it")
    axes.set(title="Gain in skill over the champion, with one-sided 95% bounds")
    format_percent(axes.xaxis)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def plot_monitoring(path: Path, months: Sequence[Mapping[str, Any]]) -> None:
    """Draw positive rates, skill with bounds and AUC over the months with their roles, and each month's calibration."""
    places, calibrated = range(len(months)), [month for month in months if month["calibration"]][-CALIBRATION_MONTHS:]
    lines = max(-(-len(calibrated) // PANELS), 1)
    with create_picture(path, 6.5 + 1.8 * lines) as figure:
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[6.5, 1.8 * lines])[:, 0]
        rates, skill, auc = upper.subplots(3, 1, sharex=True)
        rates.plot(places, get_column(months, "positive_rate"), "x--", color=ORANGE, label="observed")
        rates.plot(places, get_column(months, "mean_probability"), "o-", color=BLUE, label="expected (mean score)")
        rates.set(title="Positive rate", ylim=(0, None))
        rates.legend(**ABOVE)
        low, value, high = (get_column(months, f"skill{bound}") for bound in ("_low", "", "_high"))
        skill.errorbar(places, value, yerr=(value - low, high - value), fmt="o", color=BLUE)
        estimated = get_column(months, "estimated_skill")
        skill.plot(places, estimated, "o", color=ORANGE, markerfacecolor="none", label="estimated from the scores")
        skill.legend(**ABOVE)
        skill.axhline(0, color=GREY, linewidth=1)
        skill.set(title="Skill over the baseline, with one-sided 95% bounds by day")
        auc.plot(places, get_column(months, "auc"), "o-", color=BLUE)
        auc.set(title="Area under the ROC curve")
        rotation, gap = (45, " ") if len(months) > FLAT_LABELS else (0, "\n")
        labels = [f"{month['month']}{gap}{month['role']}" for month in months]
        step = -(-len(months) // MONTH_LABELS)
        auc.set_xticks(places[::step], labels[::step], rotation=rotation)
        format_percent(rates.yaxis, skill.yaxis)
        lower.supxlabel(
            "Calibration from 0 to 1: observed positive rate (vertical) by mean score (horizontal)", fontsize="medium"
        )
        draw_panels(lower.subplots(), calibrated)


def draw_panels(axes: Axes, months: Sequence[Mapping[str, Any]]) -> None:
    """Draw the calibration of each month in a square; an Axes for each would take most of a second."""
    square = np.array([(0, 1, 1, 0, 0, 1), (0, 0, 1, 1, 0, 1)])  # and its diagonal
    for index, month in enumerate(months):
        left, bottom = index % PANELS * 1.25, -(index // PANELS) * 1.4
        axes.plot(left + square[0], bottom + square[1], color=GREY, linewidth=1)
        predicted, observed = (get_column(month["calibration"], name) for name in ("predicted", "observed"))
        axes.plot(left + predicted, bottom + observed, "o-", color=BLUE, markersize=4)
        axes.text(left + 0.5, bottom + 1.07, month["month"], horizontalalignment="center")
    axes.set(aspect="equal", xlim=(-0.1, 1.25 * PANELS))
    axes.set_axis_off()
