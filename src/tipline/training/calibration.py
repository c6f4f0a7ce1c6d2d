"""Calibration: the probabilities corrected by what happened in the `validation` months, as a part of the model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tipline.errors import TiplineError, UsageError
from tipline.model.pyfunc import log_odds

if TYPE_CHECKING:
    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Floats

# With fewer rows the correction is as uncertain as what it corrects.
LEAST_ROWS = 1000
WHERE = "params.yaml, train.calibration"
MEND = "Set it to none, and see what the model is worth: validation.auc in reports/learning_curve.csv."
TODO = "Set it to none, raise sample.rows, or give the role size to other months."


def fit_calibration(method: str, probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """What `pyfunc.calibrated` applies, as model.json has it.

    Parameters
    ----------
    method
        sigmoid (Platt 1999, without a penalty) or isotonic (Zadrozny and Elkan 2002).
    probabilities
        Uncalibrated ones, of rows that the model was not fitted on.

    Returns
    -------
    dict
        `method`, and `slope` and `intercept` of the log-odds; or `x` and `y`, between which it is linear.

    Raises
    ------
    UsageError
        Where the rows are too few, of one class, all of one probability, or give a sigmoid no slope.
    TiplineError
        Where the model ranks the rows the wrong way round.
    """
    rows, tips = len(labels), int(labels.sum())
    if rows < LEAST_ROWS:
        raise UsageError(f"{rows:,} rows are too few to calibrate on ({LEAST_ROWS:,} at least).", WHERE, TODO)
    if tips in {0, rows}:
        raise UsageError(f"{'All' if tips else 'None'} of the {rows:,} rows to calibrate on tipped.", WHERE, TODO)
    if np.ptp(probabilities) == 0:
        todo = "Set it to none, or give the model other columns."
        raise UsageError("The model gives all rows the same probability: no calibration helps.", WHERE, todo)
    return {"method": method, **{"sigmoid": sigmoid, "isotonic": isotonic}[method](probabilities, labels)}


def sigmoid(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """Slope and intercept on the log-odds."""
    regression = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
    try:
        with warnings.catch_warnings(action="error"):
            regression.fit(log_odds(probabilities)[:, np.newaxis], labels)
    except (ConvergenceWarning, LinAlgWarning) as error:
        what = "One threshold on the probability parts the rows that tipped from all others: no sigmoid is so steep."
        raise UsageError(what, WHERE, "Set it to isotonic or none.") from error
    slope, intercept = float(regression.coef_[0, 0]), float(regression.intercept_[0])
    if slope < 0:
        what = f"The model ranks the rows to calibrate on the wrong way round (slope {slope:.3g})."
        raise TiplineError(what, WHERE, MEND)
    return {"slope": slope, "intercept": intercept}


def isotonic(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """The increasing step function that is nearest, at the ends of its steps."""
    # Rows without a tip at one end would give a probability of 0, and the first tip there an endless loss. The bound
    # is what so many rows of one class would tell (rule of succession).
    least = 1 / (len(labels) + 2)
    regression = IsotonicRegression(y_min=least, y_max=1 - least).fit(probabilities, labels)
    if len(set(regression.y_thresholds_.tolist())) == 1:
        what = "The model ranks the rows to calibrate on the wrong way round, or not at all."
        raise TiplineError(what, WHERE, MEND)
    return {"x": regression.X_thresholds_.tolist(), "y": regression.y_thresholds_.tolist()}
