"""What each column adds to the log-odds of one prediction, for models whose log-odds are a sum."""

from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import issparse
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder

from tipline.arrays import Floats
from tipline.model.artifact import Model


def compute_contributions(model: Model, batch: pa.RecordBatch) -> tuple[float, dict[str, float]]:
    """Return the log-odds that all rows start from, and what each column adds to those of the first row.

    These are coefficient times value for a logistic regression, and SHAP values for LightGBM and XGBoost. There are
    none for other models, and none without the built-in preprocessing.
    """
    steps, classifier = model.estimator.named_steps, model.estimator[-1]
    if "preprocess" not in steps:
        return 0.0, {}
    inputs = steps["preprocess"].transform(model.derive_frame(batch.slice(0, 1)))
    added = compute_terms(classifier, inputs.toarray() if issparse(inputs) else np.asarray(inputs))
    if added is None:
        return 0.0, {}
    owners, sums = list_owners(steps["preprocess"]), dict[str, float]()
    for name, value in zip(owners, added[:-1].tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
    return float(added[-1]), sums


def compute_terms(classifier: Any, inputs: Any) -> Floats | None:  # noqa: ANN401 (a classifier of any package)
    """Return what each column of a matrix with one row adds, and the start last; None for other classifiers."""
    package = type(classifier).__module__.partition(".")[0]
    terms: Floats | None = None
    if package == "lightgbm":
        terms = np.asarray(classifier.predict(inputs, pred_contrib=True))[0]
    elif package == "xgboost":
        import xgboost  # noqa: PLC0415 (an extra)

        terms = classifier.get_booster().predict(xgboost.DMatrix(inputs), pred_contribs=True)[0].astype(float)
    elif type(classifier).__name__ == "LogisticRegression":
        terms = np.append(classifier.coef_[0] * inputs[0], classifier.intercept_[0])
    return terms


def list_owners(preprocess: ColumnTransformer) -> list[str]:
    """Return the column that each output of the built-in preprocessing comes from."""
    owners: list[str] = []
    for _, transformer, columns in preprocess.transformers_:
        encoder = getattr(transformer, "named_steps", {}).get("encode", transformer)
        is_one_hot = isinstance(encoder, OneHotEncoder)
        widths = [len(values) for values in encoder.categories_] if is_one_hot else [1] * len(columns)
        owners += [str(name) for name, width in zip(columns, widths, strict=True) for _ in range(width)]
    return owners
