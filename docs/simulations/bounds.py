"""How often a month's verdict is wrong: the tables of docs/statistics.md, written between their markers.

Usage: python docs/simulations/bounds.py [--runs N] [--into docs/statistics.md]

Each run simulates a month of trips that are paid by card, of which 99% have a tip, or in cash, of which 1% have, and
asks `tipline.monitoring.verdict`. The model sees a little more than the baseline, but its true skill is zero: it is
overconfident, or its scores are off by an error that all rows of a day have in common, which only ever costs. Days
resemble the day before (AR(1)). Rows of a day that get the same score are drawn as one binomial count.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import expit, xlog1py, xlogy
from tables import format_table, replace_table

from tipline.evaluation.intervals import Ratio, find_shortage
from tipline.monitoring import verdict
from tipline.monitoring.counts import Counts, Sums, sum_baseline_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tipline.arrays import Floats

ROWS, DAYS, CORRELATIONS = (70, 240, 500, 1_000, 3_000, 100_000), (7, 14, 21, 31), (0.0, 0.1, 0.3)
CARD = 0.5  # the share of rows
CONTRAST = 0.5  # log-odds by which half of a group's rows are above the other half
SPEC = {"baseline": {"by": ["payment_type"], "smoothing": 10.0, "overall": 0.5, "rates": {"card": 0.99, "cash": 0.01}}}
HALVES = np.array([1, -1, 1, -1])  # of cards, of cash: above and below
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def loss(truth: Floats, score: Floats) -> Floats:
    """The expected log-loss of scores."""
    value: Floats = -xlogy(truth, score) - xlog1py(1 - truth, -score)
    return value


@dataclass(eq=False)
class World:
    """Where rows come from.

    Attributes
    ----------
    varies
        Standard deviation of the days' contrast; the model believes in the mean.
    error
        That of the log-odds by which a day's scores are off.
    skill
        The model's true skill, reached by exaggerating the contrast.
    """

    varies: float = 0.25
    error: float = 0.0
    skill: float = 0.0

    def __post_init__(self) -> None:
        """Find the true rates, and how much the model exaggerates."""
        level = [brentq(lambda a, r=r: self.rates(a, NODES).mean(axis=-1) @ WEIGHTS - r, -9, 9) for r in (0.99, 0.01)]
        self.levels = np.repeat(level, 2)
        self.stretch = brentq(lambda stretch: self.expect(stretch) - self.skill, 1.0, 9.0)

    def rates(self, level: float, effects: Floats) -> Floats:
        """Rates of the two halves of a group, by effect."""
        rates: Floats = expit(level + (CONTRAST + self.varies * effects)[:, None] * HALVES[:2])
        return rates

    def truth(self, effects: Floats) -> Floats:
        """Rates of the four cells on days with these effects."""
        contrast = CONTRAST + self.varies * effects[..., None]
        truth: Floats = expit(self.levels + contrast * HALVES)
        return truth

    def scores(self, effects: Floats, stretch: float) -> Floats:
        """What the model says of the four cells on days with these effects."""
        scores: Floats = expit(self.levels + stretch * CONTRAST * HALVES + self.error * effects[..., None])
        return scores

    def expect(self, stretch: float) -> float:
        """The true skill."""
        truth, shares = self.truth(NODES), np.array([CARD, CARD, 1 - CARD, 1 - CARD]) / 2
        model = loss(truth, self.scores(NODES, stretch)) @ shares @ WEIGHTS
        baseline = loss(truth, np.array([0.99, 0.99, 0.01, 0.01])) @ shares @ WEIGHTS
        return float(1 - model / baseline)

    def draw(self, random: np.random.Generator, rows: int, days: int, rho: float) -> Counts:
        """Simulate a month as scoring counts it."""
        steps = random.normal(0, np.sqrt(1 - rho**2), days)
        steps[0] = random.normal()
        effects = lfilter([1], [1, -rho], steps)
        shares = np.array([CARD, CARD, 1 - CARD, 1 - CARD]) / 2 / days
        number = random.multinomial(rows, np.tile(shares, days)).reshape(days, 4)
        positive, scores = random.binomial(number, self.truth(effects)), self.scores(effects, self.stretch)
        losses = -positive * np.log(scores) - (number - positive) * np.log1p(-scores)
        counts = Counts(rows=rows)
        sums = (array.reshape(days, 2, 2).sum(axis=2).tolist() for array in (number, positive, number * scores, losses))
        for day, cells in enumerate(zip(*sums, strict=True)):
            groups = {name: Sums(*cell) for name, *cell in zip(("card", "cash"), *cells, strict=True) if cell[0]}
            if groups:
                counts.days[str(day + 1)] = groups
        return counts


@functools.cache
def ask(world: World, rows: int, days: int, rho: float, runs: int) -> Floats:
    """How often a month is called worse, better, and too small; and how often it is worse if days are independent."""
    random, answers = np.random.default_rng(2009), np.zeros((runs, 4))
    for answer in answers:
        counts = world.draw(random, rows, days, rho)
        if is_short(counts):  # it is not judged, whatever the losses are
            answer[2] = True
            continue
        month = verdict.summarize_month(counts, SPEC)
        answer[:2] = month["reason"].startswith("Significantly worse"), month["skill_low"] > 0
        answer[3] = plain_bound(counts) < 0
    share: Floats = answers.mean(axis=0)
    return share


def is_short(counts: Counts) -> bool:
    """Whether a month has not enough data."""
    baseline = np.array([sum_baseline_loss(SPEC["baseline"], day) for day in counts.days.values()])
    surprises = verdict.count_surprises(counts, SPEC["baseline"])
    return find_shortage(baseline, len(counts.days), surprises) is not None


def plain_bound(counts: Counts) -> float:
    """The upper bound of the skill if days count as independent."""
    baseline = np.array([sum_baseline_loss(SPEC["baseline"], day) for day in counts.days.values()])
    model = np.array([sum(group.loss for group in day.values()) for day in counts.days.values()])
    return Ratio.estimate(baseline - model, baseline, are_days=False).bounds()[1]


WORLDS = {"overconfident": World(), "errors of a day": World(varies=0.0, error=0.4)}
WORSE = {3_000: -0.1, 100_000: -0.03}


def wrong(runs: int) -> Iterator[Sequence[object]]:
    """A line for each size of a month and number of days."""
    words = [f"wrong {word}, {name}" for word in ("worse", "better") for name in WORLDS]
    yield ("rows", "days", "not enough data", *words)
    for rows, days in itertools.product(ROWS, DAYS):
        found = {name: [ask(world, rows, days, rho, runs) for rho in CORRELATIONS] for name, world in WORLDS.items()}
        small = np.mean([answer[2] for answers in found.values() for answer in answers])
        shares = [format_shares(answers, place) for place in (0, 1) for answers in found.values()]
        yield (f"{rows:,}", days, f"{small:.0%}", *(shares if small < 1 else ["-"] * 4))


def power(runs: int) -> Iterator[Sequence[object]]:
    """How often a model that is worse is called worse, beside bounds that take days as independent."""
    plain = "if days are taken as independent"
    yield ("rows", "days", "true skill", "called worse", plain, f"wrong worse at zero skill, {plain}")
    for (rows, skill), days in itertools.product(WORSE.items(), DAYS[1:]):
        world, none = World(skill=skill), WORLDS["overconfident"]
        found, wrongly = ([ask(one, rows, days, rho, runs) for rho in CORRELATIONS] for one in (world, none))
        shares = [format_shares(found, 0), format_shares(found, 3), format_shares(wrongly, 3)]
        yield (f"{rows:,}", days, f"{skill:.0%}", *shares)


def format_shares(answers: Sequence[Floats], place: int) -> str:
    """One of the shares, by correlation."""
    return ", ".join(f"{answer[place]:.1%}" for answer in answers)


def format_rows(rows: Iterator[Sequence[object]]) -> str:
    """Lay out rows, of which the first one is the header."""
    return format_table(list(map(str, next(rows))), rows)


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="of each cell")
    parser.add_argument("--into", type=Path, default=Path(__file__).parents[1] / "statistics.md")
    given = parser.parse_args()
    replace_table(given.into, "bounds", format_rows(wrong(given.runs)))
    replace_table(given.into, "bounds, power", format_rows(power(given.runs)))


if __name__ == "__main__":
    main()
