"""How often the gate is wrong, on simulated days: the tables of docs/statistics.md, written between their markers.

Usage: python docs/simulations/gate.py [--runs N] [--into docs/statistics.md]

Each run simulates what two models' losses come to and asks `tipline.evaluation.gate`. A day's gain is the true gain,
the month's effect, the day's effect, which is serially correlated (AR(1)), and what its rows add, one by one. Months
scatter as those of 2009 do (docs/simulations/real_gate.py), days as between models of 50,000 and 100,000 rows on the
demo's.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import lfilter
from tables import format_table, replace_table

from tipline.evaluation import gate
from tipline.evaluation.intervals import CONFIDENCE, Ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.arrays import Codes, Floats

    Asked = Callable[[gate.Rows], bool]

TOLERANCE, SEGMENT_TOLERANCE = 0.005, 0.02
# Skill points: of a day's effect, of a month's, and of the rows of a day (3,200 of 0.43 each).
DAY, MONTH, ROWS = 0.006, 0.005, 0.0076
LOSS = 0.7  # more than log(2): every row counts as a surprise
MADE_ON = {role: {"train": ["2009-01"]} for role in ("challenger", "champion")}
FIRST = np.datetime64("2010-01-01")


@dataclass
class World:
    """Where rows come from.

    Attributes
    ----------
    rho
        Correlation of a day's effect with that of the day before.
    month
        Standard deviation of the months' effects; 0 where only the months judged on are asked about.
    rows
        That of a day's gain because it has finitely many rows.
    """

    days: int
    rho: float = 0.0
    month: float = 0.0
    rows: float = ROWS
    rows_a_day: int = 4
    segments: int = 1

    def draw(self, random: np.random.Generator, gain: float) -> gate.Rows:
        """Simulate the rows of two models of which one is better by so many skill points."""
        dates = FIRST + np.arange(self.days)
        months, of_day = np.unique(dates.astype("datetime64[M]"), return_inverse=True)
        days = gain + random.normal(0, self.month, len(months))[of_day] + self.effects(random)
        rows = random.normal(0, self.rows * np.sqrt(self.rows_a_day), (self.days, self.rows_a_day))
        codes, count = np.repeat(np.arange(self.days), self.rows_a_day), self.days * self.rows_a_day
        kinds = [f"kind {number}" for number in range(self.segments)]
        return gate.Rows(
            [str(month) for month in months],
            of_day.astype(np.int32)[codes],
            dates.astype("datetime64[D]").astype(np.int32)[codes],
            (LOSS * (days[:, None] + rows)).ravel(),
            np.full(count, LOSS),
            np.arange(count) % 2 == 0,
            {"kind": (kinds, (np.arange(count) % self.segments).astype(np.int32))},
        )

    def effects(self, random: np.random.Generator) -> Floats:
        """The days' effects."""
        steps = random.normal(0, DAY * np.sqrt(1 - self.rho**2), self.days)
        steps[0] = random.normal(0, DAY)
        effects: Floats = lfilter([1], [1, -self.rho], steps)
        return effects


def passes(rows: gate.Rows) -> bool:
    """Ask the gate."""
    return bool(gate.decide_promotion(rows, MADE_ON, TOLERANCE, SEGMENT_TOLERANCE)["promote"])


def passes_by(blocks: Codes, rows: gate.Rows, *, are_days: bool = False) -> bool:
    """Ask the gate's interval with other blocks than the gate's, by default as if they were independent."""
    gains, units = (np.bincount(blocks, weights).astype(float) for weights in (rows.gain, rows.baseline))
    return Ratio.estimate(gains, units, are_days=are_days).bounds()[0] > -TOLERANCE


def by_row(rows: gate.Rows) -> bool:
    """Take every row as independent."""
    return Ratio.estimate(rows.gain, rows.baseline, are_days=False).bounds()[0] > -TOLERANCE


def by_week(rows: gate.Rows) -> bool:
    """Take weeks as independent; what is left over belongs to the last."""
    weeks: Codes = (rows.day - rows.day.min()) // 7
    return passes_by(np.minimum(weeks, max(weeks.max() - 1, 0)), rows)


def by_day(rows: gate.Rows) -> bool:
    """Judge by day, however many months there are."""
    return passes_by(rows.day - rows.day.min(), rows, are_days=True)


def by_plain_day(rows: gate.Rows) -> bool:
    """Take days as independent."""
    return passes_by(rows.day - rows.day.min(), rows)


def share(world: World, gain: float, asked: Asked, runs: int) -> str:
    """How often the answer is yes."""
    random = np.random.default_rng(2009)
    return f"{np.mean([asked(world.draw(random, gain)) for _ in range(runs)]):.1%}"


def days(runs: int) -> str:
    """One month, by its number of days and their correlation."""
    gains = (-2 * TOLERANCE, -TOLERANCE, 0.0, TOLERANCE)
    header = ["days", "correlation", *(f"passes at {gain:+.3f}" for gain in gains)]
    names = {"by row": by_row, "by independent days": by_plain_day, "by week": by_week}
    header += [f"{name}, at {gain:+.3f}" for name in names for gain in (-TOLERANCE, 0.0)]
    others = [(asked, gain) for asked in names.values() for gain in (-TOLERANCE, 0.0)]
    asked = [*((passes, gain) for gain in gains), *others]
    return format_table(
        header,
        (
            [count, rho, *(share(World(count, rho), gain, one, runs) for one, gain in asked)]
            for count, rho in ((7, 0.0), *itertools.product((14, 21, 30), (0.0, 0.1, 0.3, 0.6)))
        ),
    )


def months(runs: int) -> str:
    """Months whose gains differ: what is judged is the gain over all months to come."""
    gains = (-TOLERANCE, 0.0, TOLERANCE)
    header = ["months", "correlation", "judged by", *(f"passes at {gain:+.3f}" for gain in gains)]
    header += [f"by day all the same, at {-TOLERANCE:+.3f}"]
    return format_table(
        header,
        (
            [
                count // 30,
                rho,
                "day" if count < 180 else "month",  # noqa: PLR2004
                *(share(World(count, rho, MONTH), gain, passes, runs) for gain in gains),
                share(World(count, rho, MONTH), -TOLERANCE, by_day, runs),
            ]
            for count in (30, 90, 181, 365)
            for rho in (0.0, 0.6)
        ),
    )


def vetoed(rows: gate.Rows) -> bool:
    """Ask whether a segment vetoes."""
    return any(one["veto"] for one in gate.decide_promotion(rows, MADE_ON, TOLERANCE, SEGMENT_TOLERANCE)["segments"])


def vetoed_each(rows: gate.Rows) -> bool:
    """Ask it with a bound for each segment alone."""
    units = np.full(len(rows.gain), rows.baseline.mean())
    names, codes = rows.segments["kind"]
    gains = (rows.estimate_gain(units, codes == code) for code in range(len(names)))
    return any(isinstance(gain, Ratio) and gain.bounds(CONFIDENCE)[1] < -SEGMENT_TOLERANCE for gain in gains)


def spoilt(by: float) -> Asked:
    """Ask the gate of models that are equal but on one of twelve segments, where the challenger is worse."""

    def asked(rows: gate.Rows) -> bool:
        rows.gain[rows.segments["kind"][1] == 0] -= by * LOSS
        return vetoed(rows)

    return asked


def segments(runs: int) -> str:
    """Twelve segments of a month, of two equal models."""
    worse = (0.03, 0.05, 0.1)
    header = ["scatter of a row", "vetoed", "with a bound for each alone", *(f"one worse by {by}" for by in worse)]
    return format_table(
        header,
        (
            [
                a_row,
                *(
                    share(World(30, rows=a_row / np.sqrt(400), rows_a_day=400, segments=12), 0.0, asked, runs // 4)
                    for asked in (vetoed, vetoed_each, *(spoilt(by) for by in worse))
                ),
            ]
            for a_row in (0.1, 0.4, 2.4)
        ),
    )


TABLES: dict[str, Callable[[int], str]] = {"days": days, "months": months, "segments": segments}


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="of each cell; a quarter of them for segments")
    parser.add_argument("--into", type=Path, default=Path(__file__).parents[1] / "statistics.md")
    given = parser.parse_args()
    for name, made in TABLES.items():
        replace_table(given.into, name, made(given.runs))


if __name__ == "__main__":
    main()
