"""Log-loss, skill and AUC, at their edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tipline.evaluation import metrics


def test_skill_is_what_is_taken_off_the_baselines_loss() -> None:
    assert metrics.compute_skill(0.3, 0.4) == pytest.approx(0.25)
    assert metrics.compute_skill(0.5, 0.4) == pytest.approx(-0.25)
    assert metrics.compute_skill(0.0, 0.4) == 1
    assert metrics.compute_skill(None, 0.4) is None
    assert metrics.compute_skill(0.3, None) is None
    assert metrics.compute_skill(0.3, 1e-9) is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_certainty_that_proves_wrong_costs_much_but_not_all(kind: type[np.floating[Any]]) -> None:
    certain: Any = np.array([0, 1, 0, 1], kind)
    loss = metrics.compute_log_loss(certain, np.array([True, False, False, True]))
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(loss[:2], 24 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(loss[2:], 0)


def test_rows_with_a_negative_tip_count_as_no_tip() -> None:
    trips = pa.RecordBatch.from_pydict({"tip_amount": [-1.0, 0.0, 0.01, None]})
    labels, known = metrics.read_labels(trips, "tip_amount")
    assert (labels.tolist(), known.tolist()) == ([False, False, True, False], [True, True, True, False])


@pytest.mark.parametrize("column", [0, 1])
def test_one_class_alone_has_no_auc(column: int) -> None:
    bands = np.zeros((10, 3), np.int64)
    bands[3:5, column] = 7
    bands[:, 2] = 1
    assert metrics.compute_auc(bands) is None
