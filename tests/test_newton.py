"""A large fit ends where scikit-learn's own would, without holding the one-hot columns of all rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests import test_pyfunc
from tests.test_pyfunc import SELECTIONS, train
from tipline.errors import TiplineError
from tipline.model import newton, pipeline, pyfunc

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Floats, Matrix

ROWS = 4000
FIRST = 300


def sample(features: list[dict[str, Any]]) -> tuple[Matrix, Labels]:
    """Trips with holes, and tips that go by two columns."""
    trips = test_pyfunc.rows(ROWS, 1)
    odds = 2.0 * (pyfunc.category_codes(trips["payment_type"], ["credit"]) == 0)
    odds += trips["fare_amount"].fill_null(0).to_numpy() / 400 - 2
    return pyfunc.build_matrix(trips, features), np.random.default_rng(2).random(ROWS) < pyfunc.apply_logistic(odds)


def unfitted(features: list[dict[str, Any]], **parameters: Any) -> Pipeline:
    return pipeline.build_pipeline(features, train(**parameters), Path())


def weights(classifier: LogisticRegression) -> Floats:
    return np.append(classifier.coef_[0], classifier.intercept_)


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_classifier_is_given_what_scikit_learn_gives_it(name: str) -> None:
    inputs, labels = sample(SELECTIONS[name])
    columns = unfitted(SELECTIONS[name]).fit(inputs, labels)["columns"]
    np.testing.assert_array_equal(newton.design(columns, inputs)[:-1].T, columns.transform(inputs))


@pytest.mark.parametrize(
    ("name", "strength"), [*((name, 1.0) for name in SELECTIONS), ("all kinds", 0.01), ("all kinds", 100)]
)
def test_a_large_fit_ends_where_scikit_learns_does(monkeypatch: pytest.MonkeyPatch, name: str, strength: float) -> None:
    monkeypatch.setattr(pipeline, "MOST_ROWS", FIRST)
    monkeypatch.setattr(newton, "CHUNK_ROWS", 1000)
    inputs, labels = sample(SELECTIONS[name])
    large = pipeline.fit_pipeline(unfitted(SELECTIONS[name], C=strength), inputs, labels)
    first = unfitted(SELECTIONS[name], C=strength).fit(inputs[:FIRST], labels[:FIRST])
    own = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12)
    own.fit(large["columns"].transform(inputs), labels)
    np.testing.assert_allclose(weights(large[-1]), weights(own), rtol=1e-5, atol=1e-7)
    assert np.abs(weights(first[-1]) - weights(own)).max() > 1e-3
    np.testing.assert_allclose(
        pyfunc_probabilities(large, SELECTIONS[name]), large.predict_proba(inputs)[:, 1], rtol=1e-9
    )


def pyfunc_probabilities(pipeline: Pipeline, features: list[dict[str, Any]]) -> Floats:
    """The probabilities of the folded pipeline."""
    folded = pipeline.fold(pipeline, features)
    assert folded is not None
    result = np.empty(ROWS)
    for rows, scores in folded.probabilities(test_pyfunc.rows(ROWS, 1), features):
        result[rows] = scores
    return result


def test_a_step_that_is_too_long_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    # A category without a tip among the first rows: from there, the first tip asks for a step over the hill.
    inputs, labels = sample(test_pyfunc.ALL)
    labels[:FIRST] &= inputs[:FIRST, 4] != 0
    monkeypatch.setattr(pipeline, "MOST_ROWS", FIRST)
    monkeypatch.setattr(pipeline, "GROWTH", ROWS)
    seen: list[float] = []
    expansion = newton.expansion

    def told(*arguments: Any) -> Any:
        result = expansion(*arguments)
        seen.append(result[0])
        return result

    monkeypatch.setattr(newton, "expansion", told)
    large = pipeline.fit_pipeline(unfitted(test_pyfunc.ALL, C=1e4), inputs, labels)
    assert (np.diff(seen) > 0).any()
    own = LogisticRegression(C=1e4, solver="newton-cholesky", tol=1e-12)
    own.fit(large["columns"].transform(inputs), labels)
    np.testing.assert_allclose(weights(large[-1]), weights(own), rtol=1e-5, atol=1e-6)


def test_a_large_fit_gives_the_same_numbers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_ROWS", FIRST)
    inputs, labels = sample(test_pyfunc.ALL)
    one, other = (pipeline.fit_pipeline(unfitted(test_pyfunc.ALL), inputs, labels) for _ in range(2))
    assert weights(one[-1]).tobytes() == weights(other[-1]).tobytes()


@pytest.mark.parametrize("parameters", [{"solver": "lbfgs"}, {"class_weight": "balanced"}, {"fit_intercept": False}])
def test_parameters_of_ones_own_are_scikit_learns_matter(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]
) -> None:
    inputs, labels = sample(test_pyfunc.ALL)
    plain = unfitted(test_pyfunc.ALL, **parameters).fit(inputs, labels)
    monkeypatch.setattr(pipeline, "MOST_ROWS", FIRST)
    here = pipeline.fit_pipeline(unfitted(test_pyfunc.ALL, **parameters), inputs, labels)
    np.testing.assert_allclose(weights(here[-1]), weights(plain[-1]), rtol=1e-9)


def test_a_large_fit_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_ROWS", FIRST)
    monkeypatch.setattr(newton, "MOST_PASSES", 1)
    inputs, labels = sample(test_pyfunc.ALL)
    with pytest.raises(TiplineError, match=r"did not converge within 1 passes over its 2,400 rows"):
        pipeline.fit_pipeline(unfitted(test_pyfunc.ALL), inputs, labels)
