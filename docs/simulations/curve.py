"""How often the study is right, on data whose curve is known: `python docs/simulations/curve.py choice` (or `fitted`).

`choice` makes the table of the chosen sizes, `fitted` those of the fitted curve, of the rows that another gain needs
and of dips. Writes them into docs/statistics.md, between their markers. Uses tipline's own study and decision.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from tipline.model.pipeline import BuiltPipeline
from tipline.training import learning_curve

if TYPE_CHECKING:
    from tipline.arrays import Codes, Floats, Labels, Matrix

    Draws = np.random.Generator

PAGE = Path(__file__).parents[1] / "statistics.md"
SIZES = (250, 500, 1000, 2000, 4000)
POOL, DAYS, ROWS_A_DAY = 8000, 28, 150
AHEAD = 16_000
TRUE_SIZES = (*SIZES, POOL, AHEAD)
TRUE_FITS, TRUE_DAYS = 400, 400
EVERYTHING = 10_000


@dataclass(frozen=True)
class Case:
    """A way in which trips could be.

    Attributes
    ----------
    columns
        Features; a model has one parameter more.
    by_day
        Standard deviation of the day's effect on the intercept; half of it, on each slope.
    bent
        Weight of a product and a square that the model does not have.
    moved
        How far the next month's slopes are from those of the pool's.
    min_gain
        The tolerance, in skill points.
    """

    name: str
    columns: int
    by_day: float
    bent: float
    moved: float
    min_gain: float


CASES = (
    Case("well specified", 10, 0.0, 0.0, 0.0, 0.005),
    Case("days differ", 10, 0.3, 0.0, 0.0, 0.005),
    Case("days differ, wrong model, next month moved", 10, 0.3, 0.5, 0.15, 0.005),
    Case("40 features, far from level", 40, 0.3, 0.0, 0.0, 0.005),
)


def slopes(case: Case) -> Floats:
    """The true coefficients: a few strong ones, many weak ones."""
    values: Floats = 1.2 / np.arange(1, case.columns + 1)
    return values


def month(case: Case, days: int, rows: int, moved: float, draws: Draws) -> tuple[Matrix, Floats, Codes]:
    """Features, true probabilities and days of a month."""
    inputs = draws.normal(size=(days * rows, case.columns))
    day: Codes = np.repeat(np.arange(days, dtype=np.int32), rows)
    of_day = draws.normal(0, case.by_day, (days, case.columns + 1)) * np.r_[1, np.full(case.columns, 0.5)]
    odds = -0.5 + of_day[day, 0] + np.einsum("ij,ij->i", inputs, (slopes(case) * (1 + moved) + of_day[day, 1:]))
    odds += case.bent * (inputs[:, 0] * inputs[:, 1] + (inputs[:, 2] ** 2 - 1) / 2)
    return inputs, 1 / (1 + np.exp(-odds)), day


def pipeline() -> Pipeline:
    """The model, almost without a penalty."""
    return Pipeline([("scale", StandardScaler()), ("classifier", LogisticRegression(C=1e6, max_iter=1000))])


def pool(case: Case, draws: Draws, size: int = POOL) -> tuple[Matrix, Labels]:
    """Rows to fit on, in random order."""
    inputs, likely, _ = month(case, DAYS, -(-size // DAYS), 0.0, draws)
    order = draws.permutation(len(likely))[:size]
    return inputs[order], draws.random(size) < likely[order]


def entropy(likely: Floats, scores: Floats) -> float:
    """Expected log-loss of scores where the true probabilities are known."""
    scores = np.clip(scores, 2.0**-24, 1 - 2.0**-24)
    return float(-(likely * np.log(scores) + (1 - likely) * np.log1p(-scores)).mean())


def truth(case: Case, fits: int = TRUE_FITS) -> Floats:
    """Skill of the largest size studied above that of each true size: the mean of many fits on pools of their own."""
    draws = np.random.default_rng(1)
    inputs, likely, _ = month(case, TRUE_DAYS, 50, case.moved, draws)
    found = np.zeros((fits, len(TRUE_SIZES)))
    for index in range(fits):
        rows, labels = pool(case, draws, AHEAD)
        for place, size in enumerate(TRUE_SIZES):
            fitted = pipeline().fit(rows[:size], labels[:size])
            found[index, place] = entropy(likely, fitted.predict_proba(inputs)[:, 1])
    mean: Floats = found.mean(axis=0)
    behind: Floats = (mean - mean[SIZES.index(max(SIZES))]) / entropy(likely, np.full(len(likely), likely.mean()))
    return behind


def one_study(case: Case, repeats: int, seed: int) -> learning_curve.Study:
    """A study of one pool and one month."""
    draws = np.random.default_rng([2, seed])
    inputs, labels = pool(case, draws)
    following, likely, day = month(case, DAYS, ROWS_A_DAY, case.moved, draws)
    answers = draws.random(len(likely)) < likely
    rate = np.full(len(likely), labels.mean())
    validation = learning_curve.Examples(pd.DataFrame(following), answers, day, rate)
    orders = learning_curve.shuffle_rows(labels, repeats, SIZES[0], seed)
    with joblib.parallel_config("sequential"):
        return learning_curve.run_study(
            BuiltPipeline(pipeline(), [], {}), pd.DataFrame(inputs), labels, validation, SIZES, orders
        )


def on_own_rows(made: learning_curve.Study, seed: int) -> Matrix:
    """Loss of each size and shuffle, each shuffle scored on a fifth of the days: scikit-learn's ShuffleSplit."""
    sums, baseline = made.losses, made.baseline_losses
    draws = np.random.default_rng([3, seed]).random((sums.shape[1], len(baseline)))
    days = draws.argsort(axis=1) < len(baseline) / 5
    return np.stack([(sums[:, index] @ of) / (baseline @ of) for index, of in enumerate(days)], axis=1)


def plain(losses: Matrix, min_gain: float) -> int:
    """What plain standard errors of the mean over shuffles choose, of differences that are not paired."""
    mean, error = losses.mean(axis=1), losses.std(axis=1, ddof=1) / math.sqrt(losses.shape[1])
    upper = mean - mean[-1] + 1.645 * np.hypot(error, error[-1])
    return next((size for size, bound in zip(SIZES[:-1], upper, strict=False) if bound < min_gain), EVERYTHING)


def of_seed(case: Case, repeats: int, seed: int) -> tuple[int, Floats, int]:
    """The choice, the bounds, and what plain standard errors choose."""
    made = one_study(case, repeats, seed)
    chosen = learning_curve.choose_rows(made, case.min_gain, EVERYTHING)["rows"]
    return chosen, learning_curve.bound_excess(made)[1], plain(on_own_rows(made, seed), case.min_gain)


def percent(share: float) -> str:
    """A share in percent."""
    return f"{share:.1%}"


def line(case: Case, repeats: int, seeds: int) -> str:
    """One line of the table."""
    true = truth(case)[: len(SIZES)]
    chosen, uppers, own = zip(*(of_seed(case, repeats, seed) for seed in range(seeds)), strict=True)
    behind = dict(zip(SIZES, true, strict=True)) | {EVERYTHING: 0.0}
    covered = (np.stack(uppers) >= true).mean(axis=0)[:-1]

    def told(choices: tuple[int, ...]) -> list[str]:
        within = sum(behind[choice] <= case.min_gain for choice in choices) / seeds
        sizes = [f"{size:,}: {choices.count(size)}" for size in SIZES if size in choices]
        return [percent(within), ", ".join([*sizes, f"all: {choices.count(EVERYTHING)}"])]

    cells = [
        case.name,
        ", ".join(f"{value:.4f}" for value in true[:-1]),
        *told(chosen),
        ", ".join(percent(float(value)) for value in covered),
        *told(own),
    ]
    return f"| {' | '.join(cells)} |"


# ---- the fitted curve ----


def extend(losses: Floats, weights: Floats, offsets: Floats, steepest: float = 1.5) -> float:
    """The loss at AHEAD rows by the best a + b * (n + offset) ** -c, with b >= 0."""
    best, found = math.inf, math.nan
    for offset, exponent in itertools.product(offsets, np.linspace(0.3, steepest, 49)):
        basis = (np.array(SIZES) + offset) ** -exponent
        centered, level = basis - basis @ weights, losses @ weights
        slope = max(float((losses - level) * weights @ centered / (centered**2 @ weights)), 0)
        if (error := float((losses - level - slope * centered) ** 2 @ weights)) < best:
            best, found = error, float(level + slope * ((AHEAD + offset) ** -exponent - basis @ weights))
    return found


def errors(made: learning_curve.Study, curves: learning_curve.Curves, gain: float) -> list[float]:
    """How wrong power laws, POW4 and the fitted curve are about the gain of AHEAD rows over the largest size."""
    losses, _ = learning_curve.bootstrap_skill(made, made.losses)
    weights = made.losses.sum(axis=2).std(axis=1) ** -2.0
    weights /= weights.sum()
    offsets = np.r_[-200, -100, 0, np.geomspace(30, SIZES[-1], 12)]
    ahead = [extend(losses, weights, np.zeros(1), steepest) for steepest in (1.5, 1.2)]
    ahead.append(extend(losses, weights, offsets))
    ahead.append(float(curves.predict(np.array([AHEAD], float))[0, 0]))
    return [abs(losses[-1] - one - gain) for one in ahead]


def fitted_lines(case: Case, seeds: int) -> tuple[str, str]:
    """A line of the table of predictions, and one of the table of needed rows."""
    true = dict(zip(TRUE_SIZES, truth(case, 30), strict=True))
    wrong, told, held = [], {SIZES[-1]: 0, POOL: 0}, {SIZES[-1]: 0, POOL: 0}
    for seed in range(seeds):
        made = one_study(case, 10, seed)
        curves = learning_curve.fit_curves(made)
        if curves is None:
            raise ValueError(case.name)
        wrong.append(errors(made, curves, -true[AHEAD]))
        for rows in told:
            gain = true[rows] - true[2 * rows]
            needed, _ = learning_curve.predict_rows(curves, rows, gain, learning_curve.FARTHEST * SIZES[-1])
            told[rows] += needed is not None
            held[rows] += needed is not None and needed["low"] <= 2 * rows <= needed["high"]
    means = np.mean(wrong, axis=0)
    cells = [f"{-true[AHEAD]:.4f}", f"{means[0]:.5f}", *(f"{one:.5f} ({one / means[0]:.2f})" for one in means[1:])]
    asked = [f"{true[rows] - true[2 * rows]:.4f} | {told[rows]} | {held[rows]}" for rows in told]
    return f"| {' | '.join([case.name, *cells])} |", f"| {' | '.join([case.name, *asked])} |"


def dips(behind: float, curves: int = 1000) -> float:
    """How often a curve of ten sizes is said to dip: level but for the eighth size, which is `behind`."""
    draws, found = np.random.default_rng(4), 0
    excess = np.zeros((10, 1, 1))
    excess[7] = behind
    for _ in range(curves):
        days = draws.uniform(40, 60, DAYS)
        noise = draws.normal(0, 0.002, (10, 10, 1)) + draws.normal(0, 0.004, (10, 10, DAYS))
        noise = noise * np.geomspace(4, 1, 10)[:, None, None]  # small samples vary more
        losses = days * (0.8 + draws.normal(0, 0.05, DAYS) + draws.normal(0, 0.002, (1, 10, 1)) + excess + noise)
        made = learning_curve.Study(tuple(range(100, 1100, 100)), losses, days, {}, {"log_loss": 0.5, "auc": 0.7})
        found += learning_curve.find_dip(made) is not None
    return found / curves


def make_fitted(seeds: int) -> str:
    """The tables of the fitted curve, and what is said of dips."""
    first, second = zip(*(fitted_lines(case, seeds) for case in CASES), strict=True)
    said = f"{percent(dips(0))} are said to dip; with one size 0.005 skill points behind, {percent(dips(0.005))}."
    return "\n".join(
        [
            f"{seeds} seeds, 10 repeats. Mean absolute error of the gain of 16,000 over 4,000 rows, in skill points,",
            "and its share of the power law's:\n",
            "| data | true gain | power law | power law, exponent to 1.2 | POW4 | MMF4 |",
            "|---|---|---|---|---|---|",
            *first,
            f"\nRows for another gain: how many of {seeds} studies told an interval, how many held it:\n",
            "| data | gain at twice 4,000 rows | told | held | gain at twice 8,000 rows | told | held |",
            "|---|---|---|---|---|---|---|",
            *second,
            f"\nOf 1,000 level curves of ten sizes, {said}",
        ]
    )


def make_choice(seeds: int) -> str:
    """The table of the chosen sizes."""
    head = (
        f"{seeds} seeds, 10 repeats, tolerance {CASES[0].min_gain:g} skill points.\n\n"
        "| data | true excess at 250, 500, 1,000, 2,000 rows | choice within the tolerance | chosen | bound not below "
        "the truth, by size | plain errors: within | plain errors: chosen |\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(line(case, 10, seeds) for case in CASES)])


def main() -> None:
    """Make a part and put it into the page."""
    parts = {"choice": make_choice, "fitted": make_fitted}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, default=200)
    arguments = parser.parse_args()
    marks = [f"<!-- {slash}{'simulation' if arguments.part == 'choice' else 'fitted curve'} -->" for slash in ("", "/")]
    table = parts[arguments.part](arguments.seeds)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    PAGE.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
