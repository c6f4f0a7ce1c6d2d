"""The baseline: rates by one category or by several together."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from tipline.evaluation import baseline

TARGET, BY = "tip_amount > 0", "payment_type"
PAYMENTS = ["cash", "credit", "no charge"]
RULE = {"by": [BY], "overall": 0.4, "rates": {"cash": 0.1, "credit": 0.9}}


def coded(values: Sequence[str | None], names: Sequence[str]) -> pa.Array:
    """A category as prepared trips have it."""
    codes = pa.array([None if value is None else names.index(value) for value in values], pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array(names))


def batch(payments: Sequence[str | None], tips: Sequence[float | None], **more: pa.Array) -> pa.RecordBatch:
    """Prepared trips with only the columns that are counted."""
    columns = {BY: coded(payments, PAYMENTS), "tip_amount": pa.array(tips, pa.float64()), **more}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def test_rates_are_smoothed_with_ten_rows_of_the_overall_rate() -> None:
    trips = batch(["cash", "cash", "cash", "credit", None], [0.0, 0.0, 1.0, 2.0, 0.0])
    assert baseline.fit_baseline(trips, TARGET, [BY]) == {
        "by": [BY],
        "smoothing": 10,
        "overall": pytest.approx(0.4),
        "rates": {
            baseline.MISSING: pytest.approx((0 + 10 * 0.4) / (1 + 10)),
            "cash": pytest.approx((1 + 10 * 0.4) / (3 + 10)),
            "credit": pytest.approx((1 + 10 * 0.4) / (1 + 10)),
        },
    }


def test_two_columns_make_groups_of_their_pairs() -> None:
    vendors = coded(["CMT", "VTS", None, "CMT"], ["CMT", "VTS"])
    trips = batch(["cash", "cash", "credit", "cash"], [0.0, 1.0, 1.0, 1.0], vendor=vendors)
    rates = {"cash | CMT": 0.5, "cash | VTS": 1.0, "credit | (missing)": 0.75}
    names, codes = baseline.group_rows(trips, [BY, "vendor"])
    assert [names[code] for code in codes] == ["cash | CMT", "cash | VTS", "credit | (missing)", "cash | CMT"]
    assert set(baseline.fit_baseline(trips, TARGET, [BY, "vendor"])["rates"]) == set(rates)
    rule = {"by": [BY, "vendor"], "overall": 0.4, "rates": rates}
    np.testing.assert_array_equal(baseline.predict_baseline(trips, rule), [0.5, 1.0, 0.75, 0.5])


def test_an_unseen_or_missing_category_has_the_overall_rate_or_its_own() -> None:
    trips = batch(["no charge", None, "credit"], [1.0, 0.0, 1.0])
    assert baseline.predict_baseline(trips, RULE).tolist() == [0.4, 0.4, 0.9]
    seen = RULE | {"rates": {"cash": 0.1, baseline.MISSING: 0.7}}
    assert baseline.predict_baseline(trips, seen).tolist() == [0.4, 0.7, 0.4]


def test_groups_without_rows_have_no_rate() -> None:
    assert baseline.compute_rates({"cash": (4, 1), "credit": (0, 0)}, 0) == {"overall": 0.25, "rates": {"cash": 0.25}}
    assert baseline.compute_rates({}, 10) == {"overall": 0, "rates": {}}
