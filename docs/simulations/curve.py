"""How often the study's choice is right, on data whose curve is known: `python docs/simulations/curve.py`.

Writes the table into docs/statistics.md, between its markers. Uses tipline's own study and decision.
"""

from __future__ import annotations

import argparse
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
MARKS = ("<!-- simulation -->", "<!-- /simulation -->")
SIZES = (250, 500, 1000, 2000, 4000)
POOL, DAYS, ROWS_A_DAY = 8000, 28, 150
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


def pool(case: Case, draws: Draws) -> tuple[Matrix, Labels]:
    """Rows to fit on, in random order."""
    inputs, likely, _ = month(case, DAYS, -(-POOL // DAYS), 0.0, draws)
    order = draws.permutation(len(likely))[:POOL]
    return inputs[order], draws.random(POOL) < likely[order]


def entropy(likely: Floats, scores: Floats) -> float:
    """Expected log-loss of scores where the true probabilities are known."""
    scores = np.clip(scores, 2.0**-24, 1 - 2.0**-24)
    return float(-(likely * np.log(scores) + (1 - likely) * np.log1p(-scores)).mean())


def truth(case: Case) -> Floats:
    """Skill of the largest size above that of each, in months to come: the mean of many fits on pools of their own."""
    draws = np.random.default_rng(1)
    inputs, likely, _ = month(case, TRUE_DAYS, 50, case.moved, draws)
    found = np.zeros((TRUE_FITS, len(SIZES)))
    for index in range(TRUE_FITS):
        rows, labels = pool(case, draws)
        for place, size in enumerate(SIZES):
            fitted = pipeline().fit(rows[:size], labels[:size])
            found[index, place] = entropy(likely, fitted.predict_proba(inputs)[:, 1])
    mean: Floats = found.mean(axis=0)
    behind: Floats = (mean - mean[-1]) / entropy(likely, np.full(len(likely), likely.mean()))
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
    true = truth(case)
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


def main() -> None:
    """Make the table and put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    head = (
        f"{arguments.seeds} seeds, {arguments.repeats} repeats, tolerance {CASES[0].min_gain:g} skill points.\n\n"
        "| data | true excess at 250, 500, 1,000, 2,000 rows | choice within the tolerance | chosen | bound not below "
        "the truth, by size | plain errors: within | plain errors: chosen |\n|---|---|---|---|---|---|---|"
    )
    table = "\n".join([head, *(line(case, arguments.repeats, arguments.seeds) for case in CASES)])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
