"""The page of monitoring: one file that opens from disk, with the months' verdicts, charts and tables."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tipline import files
from tipline.monitoring.verdict import KEEP, NO_LABELS, RETRAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

HEIGHT, LEFT, TOP, BOTTOM = 240, 56, 12, 28
# Of all columns together, where there is room, and of one.
WIDTH, NARROWEST, WIDEST = 1000, 56, 130
TICKS = 5
# So many months have a reliability chart of their own; all are in months.json.
RELIABILITY_MONTHS = 12
MARKS = {KEEP: "✓", RETRAIN: "✗", NO_LABELS: "?"}
NOT_TOLD = "\N{EN DASH}"


def write_page(path: Path, months: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of these months, as `monitoring.figures` gives them, each with `month` and `role`."""
    environment = Environment(
        loader=PackageLoader("tipline.monitoring", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["shown"] = shown
    months = [{**month, **excess(month)} for month in months]
    text = environment.get_template("page.html").render(
        months=months,
        marks=MARKS,
        verdicts=Counter(month["verdict"] for month in months),
        latest=next((month for month in reversed(months) if month["verdict"] != NO_LABELS), months[-1]),
        places={month["month"]: place for place, month in enumerate(months)},
        height=HEIGHT,
        skill=Chart.of(months, ["skill", "skill_low", "skill_high"]),
        tips=Chart.of(months, ["tip_rate", "mean_probability"]),
        excess=Chart.of(months, ["excess", "excess_low", "excess_high"]),
        reliability=[month for month in months if month["calibration"]][-RELIABILITY_MONTHS:],
        features=drifting(months),
        groups=sorted({name for month in months for name in month["groups"]}),
        oddities=list(oddities(months)),
    )
    with files.replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def excess(month: Mapping[str, Any]) -> dict[str, float | None]:
    """Realised less expected tips and its bounds, as shares of the rows with a known target."""
    rows = month["labelled_rows"]
    values = {f"excess{bound}": month[f"excess_tips{bound}"] for bound in ("", "_low", "_high")}
    return {name: None if value is None else value / rows for name, value in values.items()}


@dataclass(frozen=True)
class Chart:
    """Where a chart over the months has its months and values, in the units of its drawing."""

    width: int
    column: float
    low: float
    high: float
    ticks: list[float]

    @classmethod
    def of(cls, months: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Chart:
        """A chart that has room for all values of some figures, and for zero."""
        values = [0.0, *(month[name] for name in names for month in months if month[name] is not None)]
        low, high = min(values), max(values)
        step = nice((high - low or 1.0) / TICKS)
        first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
        ticks = [place * step for place in range(first, last + 1)]
        column = max(NARROWEST, min(WIDEST, WIDTH / len(months)))
        return cls(round(LEFT + column * len(months) + 8), column, ticks[0], ticks[-1], ticks)

    @property
    def digits(self) -> int:
        """How many digits of a percentage tell the ticks apart."""
        return max(0, math.ceil(-math.log10((self.ticks[1] - self.ticks[0]) * 100) - 1e-9))

    def x(self, place: int) -> float:
        """Across: the middle of a month's column."""
        return round(LEFT + self.column * (place + 0.5), 1)

    def y(self, value: float) -> float:
        """Down: where a value is."""
        return round(TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)


def nice(step: float) -> float:
    """The next step of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * 0.999), 10 * power)


def drifting(months: Sequence[Mapping[str, Any]]) -> list[str]:
    """The features that any month has a PSI of."""
    return list(dict.fromkeys(name for month in months if month["drift"] for name in month["drift"]["features"]))


def oddities(months: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """Month, feature and what is odd: values that the training rows did not have, values missing more often."""
    for month in months:
        for name, found in ((month["drift"] or {}).get("features", {})).items():
            new = ", ".join(f"{value} ({rows:,})" for value, rows in found["new"].items())
            if new:
                yield month["month"], name, f"new: {new}"
            missing, before = found["missing_rate"] or 0, found["reference_missing_rate"] or 0
            if missing > before + 0.01:
                yield month["month"], name, f"missing: {missing:.1%} of the rows, {before:.1%} in training"


def shown(value: float | None, form: str) -> str:
    """A figure, formatted so; a dash where there is none."""
    return NOT_TOLD if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")
