"""How fast the kernels score ensembles of trees, beside `predict_proba` on the same ready matrix, both on one thread.

Usage: python benchmarks/trees.py [--rounds N] [--rows N] [--profile]

Both sides take turns in one process. Medians of the rounds, ns a row, with the range of all rounds; the ratios are
those of the rounds, too. Ten columns and 100 trees, then 200 columns and 500 trees of 127 leaves. --profile times the
steps of the kernels by themselves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import lightgbm
import numpy as np
import xgboost
from sklearn.ensemble import HistGradientBoostingClassifier

from tipline.arrays import CHUNK_ROWS
from tipline.model import trees

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARIES = ("scikit-learn", "lightgbm", "xgboost-cpu", "numba", "numpy")
FIT_ROWS = 30_000
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def make_rows(rows: int, columns: int, categories: int) -> tuple[Matrix, Any]:
    """Make numbers, one of them with ties, and categories, a twentieth of them missing, and labels that need them."""
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(rows, columns))
    matrix[:, 1] = matrix[:, 1].round(1)
    matrix[:, columns - categories :] = generator.integers(0, 12, (rows, categories))
    weights = generator.normal(size=columns - categories) * (generator.random(columns - categories) < 0.3)  # noqa: PLR2004
    score = matrix[:, : columns - categories] @ weights + np.abs(matrix[:, 0]) - matrix[:, 1] * matrix[:, 2]
    score += (matrix[:, columns - categories :] % 3 == 1).sum(axis=1) + generator.normal(size=rows)
    matrix[generator.random(matrix.shape) < 0.05] = np.nan  # noqa: PLR2004
    return matrix, score > np.median(score)


def create_classifiers() -> dict[str, tuple[Any, int, int]]:
    """Return unfitted classifiers by name, with the numbers of columns and of categories among them."""
    few: dict[str, Any] = {"n_jobs": 1, "n_estimators": 100}
    many: dict[str, Any] = {"n_jobs": 1, "n_estimators": 500, "num_leaves": 127, "verbose": -1}
    coded: dict[str, Any] = {"categorical_feature": list(range(180, 200))}
    boosting: dict[str, Any] = {"max_iter": 100, "max_leaf_nodes": 31, "early_stopping": False}
    return {
        "scikit-learn HGB, 100 x 31": (HistGradientBoostingClassifier(**boosting), 10, 0),
        "... two columns of categories": (
            HistGradientBoostingClassifier(**boosting, categorical_features=[8, 9]),
            10,
            2,
        ),
        "LightGBM, 100 x 31": (lightgbm.LGBMClassifier(**few, num_leaves=31, verbose=-1), 10, 0),
        "XGBoost, 100 of depth 6": (xgboost.XGBClassifier(**few, max_depth=6), 10, 0),
        "LightGBM, 500 x 127, 200 columns": (lightgbm.LGBMClassifier(**many), 200, 0),
        "... 20 columns of categories": (lightgbm.LGBMClassifier(**many, **coded), 200, 20),
    }


def time_ns(function: Callable[[], Any], rows: int) -> float:
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) / rows * 1e9


def measure(name: str, classifier: Any, matrix: Matrix, rounds: int, *, profile: bool) -> str:  # noqa: ANN401
    """Return a line of the table; stop if a score differs."""
    ensemble = trees.convert_classifier(classifier)
    assert ensemble is not None  # noqa: S101
    scorer = trees.TreeScorer(ensemble)
    columns: list[trees.Column] = [partial(copy_rows, column) for column in matrix.T]
    sides: dict[str, Callable[[], Any]] = {
        "theirs": lambda: classifier.predict_proba(matrix)[:, 1].astype(float),
        "ours": lambda: scorer.score_columns(columns, len(matrix)),
    }
    if not np.array_equal(sides["ours"](), sides["theirs"]()):
        raise SystemExit(f"{name}: the kernels do not give the scores of predict_proba")
    if profile:
        sides |= split_steps(scorer, columns, len(matrix))
    found = defaultdict(list)
    for _ in range(rounds):
        for side, function in sides.items():
            found[side].append(time_ns(function, len(matrix)))
    ratios = [theirs / ours for theirs, ours in zip(found["theirs"], found["ours"], strict=True)]
    way = "bits" if "bits" in scorer.add_leaves.__qualname__ else "steps"
    shown = [format_range(times, ",.0f") for times in found.values()]
    return f"| {' | '.join([name, way, *shown, format_range(ratios, '.1f')])} |"


def copy_rows(column: Any, rows: slice, out: Any) -> None:  # noqa: ANN401 (arrays)
    out[:] = column[rows]


def format_range(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} - {max(values):{form}})"


def split_steps(scorer: trees.TreeScorer, columns: list[trees.Column], rows: int) -> dict[str, Callable[[], Any]]:
    """Return the steps of the kernels as functions of their own, on a chunk that is repeated for all rows."""
    size = min(rows, CHUNK_ROWS)
    blocks, values = size // trees.BLOCK_ROWS, np.empty(size)
    codes = np.zeros((blocks, len(scorer.columns), trees.BLOCK_ROWS), np.uint16)
    sums = np.zeros((blocks, trees.BLOCK_ROWS), scorer.dtype)

    def code() -> None:
        for index, column in enumerate(scorer.columns):
            columns[column](slice(0, size), values)
            scorer.kernels.code_values(values, scorer.padded[index], codes, index)

    def repeat(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(rows // size):
                function()

        return run

    one = scorer.dtype.type(1)
    return {
        "codes": repeat(code),
        "leaves": repeat(lambda: scorer.add_leaves(codes, sums)),
        "link": repeat(lambda: scorer.kernels.apply_link(sums, one, one, scorer.limit)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", default="", help="classifiers with this in their names")
    options = parser.parse_args()
    print(", ".join(f"{name} {version(name)}" for name in LIBRARIES))
    parts = ["codes", "leaves", "link"] if options.profile else []
    print(f"| classifier | way | {' | '.join(['predict_proba, ns', 'kernels, ns', *parts])} | times as fast |")
    print(f"| {' | '.join(['---'] * (5 + len(parts)))} |")
    for name, (classifier, width, categories) in create_classifiers().items():
        if options.only in name:
            rows = options.rows if width < 100 else options.rows // 8  # noqa: PLR2004
            matrix, labels = make_rows(FIT_ROWS + rows, width, categories)
            fitted = classifier.fit(matrix[:FIT_ROWS], labels[:FIT_ROWS])
            print(measure(name, fitted, matrix[FIT_ROWS:], options.rounds, profile=options.profile), flush=True)


if __name__ == "__main__":
    main()
