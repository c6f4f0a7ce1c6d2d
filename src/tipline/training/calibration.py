"""Fit a calibration on the `validation` months. It becomes part of the model."""

import warnings
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tipline.arrays import Floats, Labels
from tipline.errors import TiplineError, UsageError
from tipline.model.pyfunc import log_odds

MIN_ROWS = 1000  # with fewer, the correction is as uncertain as what it corrects
WHERE = "params.yaml, train.calibration"
WRONG_ORDER = "Set it to null, and see auc in reports/learning_curve.csv for what the model is worth."


def fit_calibration(method: str, probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """Fit the correction that `pyfunc.apply_calibration` applies, on rows that the model was not fitted on.

    `method` is `sigmoid` (Platt 1999, without a penalty) or `isotonic` (Zadrozny and Elkan 2002).
    """
    rows, positive = len(labels), int(labels.sum())
    todo = "Set it to null, raise sample.rows, or give the role validation to other months."
    if rows < MIN_ROWS:
        raise UsageError(f"{rows:,} rows are too few to calibrate on; {MIN_ROWS:,} are needed.", WHERE, todo)
    if positive in {0, rows}:
        raise UsageError(f"All {rows:,} rows to calibrate on have the label {positive > 0}.", WHERE, todo)
    if np.ptp(probabilities) == 0:
        todo = "Set it to null, or give the model other columns."
        raise UsageError("The model gives all rows the same probability; calibration cannot help.", WHERE, todo)
    fit = fit_sigmoid if method == "sigmoid" else fit_isotonic
    return {"method": method, **fit(probabilities, labels)}


def fit_sigmoid(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    regression = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
    try:
        with warnings.catch_warnings(action="error"):
            regression.fit(log_odds(probabilities)[:, np.newaxis], labels)
    except (ConvergenceWarning, LinAlgWarning) as error:
        what = "A threshold on the probability separates the two labels, so a sigmoid would be infinitely steep."
        raise UsageError(what, WHERE, "Set it to isotonic or null.") from error
    slope, intercept = float(regression.coef_[0, 0]), float(regression.intercept_[0])
    if slope < 0:
        what = f"The model ranks the rows to calibrate on the wrong way round (slope {slope:.3g})."
        raise TiplineError(what, WHERE, WRONG_ORDER)
    return {"slope": slope, "intercept": intercept}


def fit_isotonic(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    # A step of one label only would give probability 0 or 1, and the first exception an infinite loss. The bounds are
    # the rule of succession for this many rows.
    least = 1 / (len(labels) + 2)
    regression = IsotonicRegression(y_min=least, y_max=1 - least).fit(probabilities, labels)
    if len(set(regression.y_thresholds_.tolist())) == 1:
        what = "The model ranks the rows to calibrate on the wrong way round, or not at all."
        raise TiplineError(what, WHERE, WRONG_ORDER)
    return {"x": regression.X_thresholds_.tolist(), "y": regression.y_thresholds_.tolist()}
