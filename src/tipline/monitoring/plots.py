"""The pictures in reports/."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from tipline import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Probabilities

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
COLORS, MARKS = {"challenger": BLUE, "champion": ORANGE}, {"challenger": "o-", "champion": "x--"}


@contextlib.contextmanager
def picture(path: Path, height: float) -> Iterator[Figure]:
    """Give a figure of 9 by so many inches; it is written if the block ends well."""
    with mpl.rc_context(STYLE), files.replace_file(path) as temporary:
        figure = Figure(figsize=(9, height), layout="constrained")
        yield figure
        figure.savefig(temporary, format="png", dpi=130)


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One figure of all rows, NaN for None."""
    return [np.nan if row[name] is None else row[name] for row in rows]


def plot_learning_curve(path: Path, decision: Mapping[str, Any]) -> None:
    """Skill by rows on both sets of validation rows, the power law, the chosen size; beside it what a fit takes."""
    sizes = decision["sizes"]
    rows = [size["rows"] for size in sizes]
    with picture(path, 4.8) as figure:
        skill, cost = figure.subplots(1, 2, width_ratios=[2.6, 1])
        draw_skill(skill, sizes, "held_out", GREY, "held-out rows, same months")
        draw_skill(skill, sizes, "validation", BLUE, "validation months")
        draw_power_law(skill, decision["power_law"], rows)
        skill.axhline(0, color=GREY, linewidth=1)
        skill.axvline(decision["rows"], color=ORANGE, label=f"chosen: {decision['rows']:,} rows")
        skill.set(title="Skill, with 90% intervals", ylabel="log-loss taken off the baseline's", xscale="log")
        skill.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        figure.legend(*skill.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)
        draw_cost(cost, rows, column(sizes, "fit_seconds"), decision["bytes_a_row"])
        for axes in (skill, cost):
            axes.set(xlabel="rows in the training sample")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())


def draw_skill(axes: Axes, sizes: Sequence[Mapping[str, Any]], name: str, color: str, label: str) -> None:
    """The skill on one set of validation rows, with its intervals."""
    rows = [size["rows"] for size in sizes]
    low, mean, high = (column(sizes, f"{name}.{figure}") for figure in ("skill_low", "skill", "skill_high"))
    axes.fill_between(rows, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(rows, mean, "o", color=color, label=label, markersize=4)


def draw_power_law(axes: Axes, law: Mapping[str, Any] | None, sizes: Sequence[int]) -> None:
    """The power law through the points, with its interval; dashed beyond ten times the largest size studied."""
    if law is None:
        return
    rows, skill = np.array(law["rows"]), np.array(law["skill"])
    far = np.searchsorted(rows, 10 * sizes[-1], side="right")
    misfit = f", misses {law['misses']} of {len(sizes)} sizes" if law["misses"] else ""
    label = f"power law, exponent {law['exponent']:.2f}{misfit}"
    axes.plot(rows[:far], skill[:far], color=BLUE, linewidth=1.2, label=label)
    axes.plot(rows, law["low"], ":", rows, law["high"], ":", color=BLUE, linewidth=0.8)
    if far < len(rows):
        beyond = "beyond ten times the study"
        axes.plot(rows[far - 1 :], skill[far - 1 :], "--", color=BLUE, linewidth=1.2, label=beyond)


def draw_cost(axes: Axes, rows: Sequence[int], seconds: Sequence[float], bytes_a_row: int) -> None:
    """Seconds and megabytes of a fit."""
    axes.plot(rows, seconds, "o-", color=GREY, label="seconds")
    axes.plot(rows, [size * bytes_a_row / 1e6 for size in rows], "s--", color=ORANGE, label="megabytes")
    axes.set(title="What a fit takes", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(fontsize=9)


def plot_evaluation(path: Path, report: Mapping[str, Any], scores: Mapping[str, Probabilities], labels: Labels) -> None:
    """Predicted against observed tip rates of the models where tips are likely; skill; below, what the gate saw."""
    gains = [segment for segment in report["gate"]["segments"] if segment["gain"] is not None]
    below = 1.2 + 0.22 * len(gains) if report["gate"]["gain"] else 0
    with picture(path, 4 + below) as figure:
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[4, below])[:, 0] if below else [figure]
        reliability, bars = parts[0].subplots(1, 2, width_ratios=[2, 1])
        draw_reliability(reliability, scores, labels, ", ".join(report["months"]))
        colors = [COLORS[name] for name in scores]
        bars.bar(list(scores), [report[name]["skill"] or 0 for name in scores], color=colors, width=0.6)
        bars.axhline(0, color=GREY, linewidth=1)
        bars.set(title="Skill over the baseline")
        bars.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        for part in parts[1:]:
            draw_gains(part.subplots(), report["gate"], gains)


def draw_reliability(axes: Axes, scores: Mapping[str, Probabilities], labels: Labels, months: str) -> None:
    """Predicted against observed tip rates."""
    for name, values in scores.items():
        axes.plot(*calibration(values, labels), MARKS[name], color=COLORS[name], label=name)
    ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), 1]
    axes.plot(ends, ends, color=GREY, linewidth=1, label="perfect")
    title = f"Calibration on {months}, where a tip is likelier than not"
    axes.set(title=title, xlabel="mean predicted probability", ylabel="share that tipped")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()


def draw_gains(axes: Axes, verdict: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> None:
    """The gain overall and by segment, with bounds, beside what is tolerated."""
    overall, limits = verdict["gain"], verdict["tolerated"]
    names = ["all rows", *(f"{segment['column']} {segment['value']}" for segment in segments)]
    gains = [(overall["value"], overall["lower"], overall["upper"])]
    gains += [(segment["gain"], segment["lower"], segment["upper"]) for segment in segments]
    colors = [BLUE if overall["lower"] > -limits["gain"] else RED, *(RED if one["veto"] else GREY for one in segments)]
    for place, ((value, lower, upper), color) in enumerate(zip(gains, colors, strict=True)):
        axes.plot([lower, upper], [place, place], color=color, linewidth=2)
        axes.plot(value, place, "o", color=color)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.plot([-limits["gain"]] * 2, [-0.4, 0.4], color=ORANGE, label="tolerated: the left end has to be right of it")
    if segments:
        ends = [0.6, len(segments) + 0.4]
        label = "tolerated: no right end may be left of it"
        axes.plot([-limits["segment"]] * 2, ends, "--", color=ORANGE, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title="Gain over the champion, in parts of the baseline's log-loss, 95% bounds")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.legend(fontsize=9)


def calibration(probabilities: Probabilities, labels: Labels) -> tuple[list[float], list[float]]:
    """Mean prediction and share that tipped, in ten bins of equally many of the rows that are likely to tip.

    The others all have next to no tips, and would fill nine tenths of the picture with one point.
    """
    likely = np.flatnonzero(probabilities > 0.5)  # noqa: PLR2004
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    parts = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [float(probabilities[part].mean()) for part in parts], [float(labels[part].mean()) for part in parts]


def plot_monitoring(path: Path, months: Sequence[Mapping[str, Any]]) -> None:
    """Over the months: predicted and observed tip rate, skill with bounds, AUC; with each month's role."""
    names = [month["month"] for month in months]
    with picture(path, 6.5) as figure:
        rates, skill, auc = figure.subplots(3, 1, sharex=True)
        draw_rates(rates, names, months)
        draw_skills(skill, names, months)
        auc.plot(names, column(months, "auc"), "o-", color=BLUE)
        auc.set(title="Area under the ROC curve")
        auc.tick_params(axis="x", rotation=45 if len(names) > 12 else 0)  # noqa: PLR2004
        for axes in (rates, skill):
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))


def draw_rates(axes: Axes, names: Sequence[str], months: Sequence[Mapping[str, Any]]) -> None:
    """Predicted and observed tip rates, and above each month its role."""
    axes.plot(names, column(months, "mean_probability"), "o-", color=BLUE, label="mean probability")
    axes.plot(names, column(months, "tip_rate"), "x--", color=ORANGE, label="share that tipped")
    axes.set(title="Tips", ylim=(0, None))
    axes.legend(loc="lower right")
    for place, month in enumerate(months):
        axes.annotate(month["role"], (place, 1), xycoords=("data", "axes fraction"), ha="center", color=GREY)


def draw_skills(axes: Axes, names: Sequence[str], months: Sequence[Mapping[str, Any]]) -> None:
    """Skill of each month, with its bounds."""
    figures = (column(months, name) for name in ("skill_low", "skill", "skill_high"))
    for name, low, value, high in zip(names, *figures, strict=True):
        color = RED if value < 0 else BLUE
        axes.plot([name, name], [low, high], color=color, linewidth=2)
        axes.plot([name], [value], "o", color=color)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(title="Skill over the baseline, with one-sided 95% bounds by day")
