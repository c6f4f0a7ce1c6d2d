"""What each column adds to the log-odds of one prediction, for models whose log-odds are a sum."""

import numpy as np
import pyarrow as pa
from scipy.sparse import issparse
from sklearn.preprocessing import OneHotEncoder

from tipline.model.artifact import Model


def compute_contributions(model: Model, batch: pa.RecordBatch) -> tuple[float, dict[str, float]]:
    """Return the log-odds that all rows start from, and what each column adds to those of the first row.

    These are coefficient times value for a logistic regression, and SHAP values for LightGBM and XGBoost. There are
    none for other models, and none without the built-in preprocessing.
    """
    if model.is_external or "preprocess" not in model.estimator.named_steps:
        return 0.0, {}
    preprocess, classifier = model.estimator["preprocess"], model.estimator[-1]
    inputs = preprocess.transform(model.derive_frame(batch.slice(0, 1)))
    inputs = inputs.toarray() if issparse(inputs) else np.asarray(inputs)
    package = type(classifier).__module__.partition(".")[0]
    if package == "lightgbm":
        *added, start = np.asarray(classifier.predict(inputs, pred_contrib=True))[0]
    elif package == "xgboost":
        import xgboost  # noqa: PLC0415 (an extra)

        *added, start = classifier.get_booster().predict(xgboost.DMatrix(inputs), pred_contribs=True)[0].astype(float)
    elif type(classifier).__name__ == "LogisticRegression":
        added, start = classifier.coef_[0] * inputs[0], classifier.intercept_[0]
    else:
        return 0.0, {}
    terms, sums = iter(added), dict[str, float]()
    for _, transformer, columns in preprocess.transformers_:
        encoder = getattr(transformer, "named_steps", {}).get("encode", transformer)
        for index, name in enumerate(columns):
            width = len(encoder.categories_[index]) if isinstance(encoder, OneHotEncoder) else 1
            sums[str(name)] = float(sum(next(terms) for _ in range(width)))
    return float(start), sums
