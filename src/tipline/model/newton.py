"""A large fit of tipline's logistic regression: from a solution on some of the rows to that on all of them.

scikit-learn's solvers want the one-hot columns of all rows at once, 35 doubles a row, and copies of them; on ten
million rows that is more than 6 GB. From near the solution a few of Newton's steps lead to it, and what they need are
sums over the rows, some rows at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import lstsq

from tipline.errors import TiplineError
from tipline.model.pyfunc import apply_logistic

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Floats, Matrix

CHUNK_ROWS = 2**14
MOST_PASSES = 40
# Nats a row that the last step may still gain; what it leaves is far less.
ENOUGH = 1e-10


def refine_fit(pipeline: Pipeline, inputs: Matrix, labels: Labels) -> None:
    """Move a logistic regression that was fitted on some of the rows to where it is best on all of them.

    The loss is scikit-learn's: the mean log-loss plus the squares of the coefficients over 2 C rows. The preprocessing
    stays that of the rows of the first fit; it decides on the value of a missing number and the unit of the penalty.

    Raises
    ------
    TiplineError
        Where it does not converge.
    """
    classifier = pipeline[-1]
    weights: Floats = np.append(classifier.coef_[0], classifier.intercept_)
    penalty = np.append(np.full(len(weights) - 1, 1 / (classifier.C * len(labels))), 0)
    least = np.inf
    step: Floats = np.zeros(len(weights))
    for _ in range(MOST_PASSES):
        loss, gradient, hessian = expansion(pipeline["columns"], weights - step, penalty, inputs, labels)
        if loss > least:
            step /= 2  # too far: the loss is no parabola there
            continue
        weights, least = weights - step, loss
        # Without a penalty, the one-hot columns leave the Hessian singular: least squares take the shortest step.
        step = lstsq(hessian, gradient)[0]
        if gradient @ step / 2 < ENOUGH:
            weights -= step
            classifier.coef_, classifier.intercept_ = weights[np.newaxis, :-1].copy(), weights[-1:].copy()
            return
    what = f"The fit did not converge within {MOST_PASSES} passes over its {len(labels):,} rows."
    raise TiplineError(what, "params.yaml, train", "Lower train.params.C, or train.rows.")


def expansion(
    columns: ColumnTransformer, weights: Floats, penalty: Floats, inputs: Matrix, labels: Labels
) -> tuple[float, Floats, Matrix]:
    """The loss at some weights, its gradient and its Hessian."""
    loss, gradient, hessian = 0.0, np.zeros(len(weights)), np.zeros((len(weights), len(weights)))
    for start in range(0, len(labels), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        given = design(columns, inputs[rows])
        odds = weights @ given
        loss += float(np.logaddexp(0, odds).sum() - odds[labels[rows]].sum())
        scores = apply_logistic(odds)
        gradient += given @ (scores - labels[rows])
        given *= np.sqrt(scores * (1 - scores))
        hessian += given @ given.T  # of one array with itself, BLAS computes half
    count = len(labels)
    return (
        loss / count + float(penalty @ weights**2) / 2,
        gradient / count + penalty * weights,
        hessian / count + np.diag(penalty),
    )


def design(columns: ColumnTransformer, inputs: Matrix) -> Matrix:
    """What the classifier is given, a line a coefficient and the intercept's last: `columns.transform`, but faster."""
    blocks: list[Matrix] = []
    for name, transformer, places in columns.transformers_:
        if name == "numbers":
            blocks.append(transformer.transform(inputs[:, places]).T)
        else:
            blocks += [
                inputs[:, place] == values[:, np.newaxis]
                for place, values in zip(places, transformer.categories_, strict=True)
            ]
    return np.concatenate([*blocks, np.ones((1, len(inputs)))])
