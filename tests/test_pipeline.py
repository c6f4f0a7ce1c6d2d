"""One pipeline takes prepared columns and gives probabilities, the same for a row whichever way the row arrives."""

import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests import workbench
from tipline.errors import UsageError
from tipline.ingest.columns import CATEGORY
from tipline.ingest.schema import load_schema
from tipline.model import artifact, compiled, golden_rows, persistence, pipeline, pyfunc

Fit = Callable[..., artifact.Model]

ALL = ["vendor", "pickup_datetime", "passenger_count", "trip_distance", "payment_type", "fare_amount"]
SELECTIONS = {
    "all kinds": ALL,
    "only categories": ["payment_type", "vendor"],
    "only numbers": ["fare_amount", "trip_distance"],
    "a number that no training row has": ["payment_type", "airport_fee", "fare_amount"],
}
ESTIMATORS = ["logistic_regression", "hist_gradient_boosting", "sklearn.ensemble.GradientBoostingClassifier"]
CODE = """
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
FACTOR = 2.0
def add_double(trips):
    trips["double"] = trips["fare_amount"] * FACTOR
    trips["long"] = np.where(trips["trip_distance"] > 3, "long", "short")
    return trips[["payment_type", "double", "long"]]
def add_ratio(trips):
    return trips.assign(ratio=trips["fare_amount"] / (trips["trip_distance"] > 3))
def in_pieces(trips):
    pieces = [trips.iloc[:1], trips.iloc[1:]]
    return pd.concat(pieces).assign(nanoseconds=pd.Timestamp("2009-01-01").as_unit("ns"))
def fail_on_parts(trips):
    if len(trips) < 400:
        raise ValueError("too few rows")
    return trips
@np.vectorize
def vectorized(trips):
    return trips
def twice(trips):
    return pd.concat([trips, trips], axis=1)
def center(trips):
    return trips.assign(fare_amount=trips["fare_amount"] - trips["fare_amount"].mean())
def split_fares(trips):
    rounded = trips["fare_amount"].round().clip(-1, 9)
    whole = rounded.astype("int32") if rounded.notna().all() else rounded
    return trips.assign(fare=whole, negative=-rounded * 0, is_short=trips["trip_distance"].fillna(0) < 3)
def nullable(trips):
    fare, short = trips["fare_amount"], trips["trip_distance"] < 3
    return trips.assign(whole=fare.round().astype("Int64"), short=short.astype("boolean").mask(fare.isna()))
def drop_rows(trips):
    return trips.dropna()
def fail(trips):
    return trips["no such column"]
class Fares(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.mean_ = float(X["fare_amount"].mean())
        return self
    def transform(self, X):
        return X[["fare_amount"]].fillna(self.mean_).to_numpy() / FACTOR
def stack(**params):
    parts = [(f"C={C}", make_pipeline(Fares(), LogisticRegression(C=C))) for C in (1, 9)]
    return StackingClassifier(parts, cv=2, n_jobs=2, **params)
"""


def rows(count: int, seed: int) -> pa.RecordBatch:
    """Make trips with unknown and missing categories, missing times and numbers, numbers out of range."""
    generator = np.random.default_rng(seed)

    def holes(values: Any, type_: pa.DataType) -> pa.Array:
        return pa.array(values, type_, mask=generator.random(count) < 0.07)

    def category(values: Sequence[str]) -> pa.Array:
        codes = holes(generator.integers(0, len(values), count), pa.int32())
        return pa.DictionaryArray.from_arrays(codes, pa.array(values))

    start = datetime(2008, 12, 31)  # noqa: DTZ001 (the trips' times have no zone)
    times = [start + timedelta(seconds=int(second)) for second in generator.integers(0, 86_400 * 40, count)]
    columns = {
        "vendor": category(["VTS", "CMT", "Helix"]),
        "payment_type": category(["credit", "cash", "voided", "flex fare"]),
        "pickup_datetime": holes(times, pa.timestamp("us")),
        "passenger_count": holes(generator.integers(-3, 13, count), pa.int32()),
        "trip_distance": holes(generator.lognormal(1, 1, count), pa.float64()),
        "fare_amount": holes(generator.normal(100, 400, count), pa.float64()),
        "airport_fee": pa.array(generator.random(count), pa.float64()),
    }
    return pa.RecordBatch.from_pydict(columns)


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """A function that fits on trips whose tips depend on several columns, saves the model and loads what was saved."""
    return lambda *arguments, **sections: fit_model(tmp_path / "project", *arguments, **sections)


def fit_model(
    root: Path, columns: Sequence[str], estimator: str, code: str = "", *, is_tried: bool = False, **model: Any
) -> artifact.Model:
    categories = {name: values for name, values in LISTED.items() if name in columns}
    model = {"columns": list(columns), "categories": categories} | model
    paths = workbench.write_project(root, model=model, train={"estimator": estimator, "params": {}})
    (paths.root / "features.py").write_text(code)
    settings, schema, trips = workbench.load_settings(paths), load_schema(), rows(3000, 1)
    trips = trips.set_column(trips.schema.get_field_index("airport_fee"), "airport_fee", pa.nulls(3000, pa.float64()))
    plain = trips.to_pandas()
    score = (plain.payment_type == "credit") + 1.0 * (plain.pickup_datetime.dt.hour > 12) + plain.fare_amount / 500
    labels = score.fillna(0).to_numpy() + np.random.default_rng(2).normal(0, 1, 3000) > 1.2
    spec = pipeline.create_spec(settings, schema)
    frame = artifact.read_frame(trips, spec["inputs"])
    built = pipeline.build_pipeline(settings, schema, paths.root, frame)
    if is_tried:  # takes seconds
        persistence.try_pipeline(built, frame, labels)
    pipeline.fit_pipeline(built.pipeline, frame, labels)
    folder = root / "model"
    folder.mkdir(exist_ok=True)
    persistence.save_model(folder, built, spec | {"features": built.features})
    return artifact.Model(artifact.read_artifact(folder))


LISTED = {"vendor": ["CMT", "DDS", "VTS"], "payment_type": ["cash", "credit"]}


@pytest.fixture(scope="module", params=ESTIMATORS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> artifact.Model:
    return fit_model(tmp_path_factory.mktemp("model"), ALL, request.param)


@pytest.mark.parametrize("name", SELECTIONS)
def test_compiled_model_equals_the_pipeline(fit: Fit, name: str) -> None:
    model = fit(SELECTIONS[name], "logistic_regression")
    assert model.linear is not None
    trips = rows(2000, 3)
    expected = model.uncalibrated(trips)
    assert len(np.unique(expected)) > 2
    found = np.concatenate([part.copy() for _, part in compiled.compute_probabilities(trips, model.linear)])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(model.probabilities(trips), expected, rtol=0, atol=2**-25)


SPLIT = {"features": "split_fares", "categorical": ["fare", "negative", "is_short"]}
DERIVED: list[tuple[list[str], dict[str, Any]]] = [
    (["payment_type", "fare_amount", "trip_distance", "pickup_datetime"], {"features": "add_double"}),
    (["fare_amount", "trip_distance"], SPLIT),
    (["fare_amount", "trip_distance"], {"features": "nullable", "categorical": ["whole", "short"]}),
    (["fare_amount", "passenger_count"], {"categorical": ["passenger_count"]}),
]


@pytest.mark.parametrize(("columns", "settings"), DERIVED)
def test_a_linear_model_of_derived_columns_is_folded_when_it_is_loaded(
    fit: Fit, columns: list[str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trips = fit(columns, "logistic_regression", CODE, is_tried=True, **settings), rows(2000, 3)
    assert (model.linear, compiled.list_tree_terms(model.estimator)) == (None, None)
    expected, derived = artifact.Model(model._files, use_compiled=False).score_rows(trips)
    assert len(np.unique(expected)) > 10
    monkeypatch.setattr(type(model.estimator), "predict_proba", None)
    found, same = model.score_rows(trips)
    np.testing.assert_array_max_ulp(found, expected, 1)
    assert same.equals(derived)
    whole = trips.filter(pc.is_valid(trips["fare_amount"])).slice(0, 50)
    np.testing.assert_array_max_ulp(model.probabilities(whole), expected[trips["fare_amount"].is_valid()][:50], 1)


@pytest.mark.parametrize(
    ("columns", "settings"), [*DERIVED, (ALL, {}), (ALL, {"categories": {"vendor": ["VTS", "other"]}})]
)
def test_columns_are_encoded_for_trees_as_the_pipeline_does(
    fit: Fit, columns: list[str], settings: dict[str, Any]
) -> None:
    model, trips = fit(columns, "hist_gradient_boosting", CODE, **settings), rows(2000, 3)
    terms = compiled.list_tree_terms(model.estimator)
    assert terms is not None
    encoded = compiled.encode_matrix(model.score_rows(trips)[1], terms)
    np.testing.assert_array_equal(encoded, model.estimator["preprocess"].transform(model.derive_frame(trips)))
    plain, fast = artifact.Model(model._files, use_compiled=False), artifact.Model(model._files, rows=10**9)
    assert (fast.form, model.form, plain.form) == artifact.FORMS
    expected = plain.probabilities(trips).tobytes()
    assert expected == model.probabilities(trips).tobytes() == fast.probabilities(trips).tobytes()


WRONG = "of the model does not give its scores"


def test_a_compiled_form_that_is_wrong_is_not_used(fit: Fit) -> None:
    model = fit(ALL, "logistic_regression")
    files = dict(model._files)
    spec = golden_rows.add_golden_rows(artifact.Model(files, use_compiled=False), rows(100, 3))

    def load() -> tuple[artifact.Model, int, str]:
        changed = files | {pyfunc.SPEC: json.dumps(spec).encode()}
        return golden_rows.load_checked_model(changed, artifact.hash_artifact(changed), "here")

    assert load()[0].linear is not None
    spec["linear"]["intercept"] += 1e-3
    model, *found = load()
    assert (model.linear, model.form, found) == (None, "pipeline", [0, f"the compiled form {WRONG}"])


def test_row_has_the_same_score_in_any_batch(loaded: artifact.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = rows(1501, 4)
    whole = loaded.probabilities(trips)
    assert whole.dtype == np.float32
    assert len(np.unique(whole)) > 100
    edges = [0, 1, 2, 9, 500, 501, 1499, 1501]
    slices = [trips.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    assert np.concatenate([loaded.probabilities(part) for part in slices]).tobytes() == whole.tobytes()
    empty = loaded.probabilities(trips.slice(0, 0))
    assert empty.shape == (0,)
    assert empty.dtype == np.float32
    for module, name in ((compiled, "CHUNK_ROWS"), (artifact, "BATCH_ROWS")):
        monkeypatch.setattr(module, name, 601)
    assert loaded.probabilities(trips).tobytes() == whole.tobytes()


def test_pandas_and_arrow_give_the_same_scores(loaded: artifact.Model) -> None:
    trips = rows(1000, 6)
    plain = trips.to_pandas()
    texts, floats = ["vendor", "payment_type"], ["passenger_count", "trip_distance", "fare_amount"]
    floats_and_time = dict.fromkeys(floats, "float64") | {"pickup_datetime": "datetime64[us]"}
    missing = plain.astype(dict.fromkeys(texts, "object")).replace({np.nan: None})
    for frame in (
        plain,
        plain.astype(dict.fromkeys(texts, "str")),
        missing.astype(floats_and_time),
        plain.astype({"pickup_datetime": "datetime64[ns]"}),
        plain.astype({"passenger_count": "Int64", "trip_distance": "Float64"}),
        plain.assign(other=1)[[*reversed(plain.columns), "other"]],
    ):
        predicted = pyfunc.predict_rows(loaded.estimator, loaded.spec, frame).astype(np.float32)
        np.testing.assert_array_max_ulp(predicted, loaded.probabilities(trips), 1)
    nothing = pd.DataFrame({name: [None, None] for name in ALL})
    scores = pyfunc.predict_rows(loaded.estimator, loaded.spec, nothing)
    assert ((scores > 0) & (scores < 1)).all()


def test_unseen_and_missing_values_are_levels_of_their_own(loaded: artifact.Model) -> None:
    trips = rows(1000, 7).to_pandas().astype({"vendor": "str"})
    frames = [trips.assign(vendor=value) for value in ("never seen", "DDS", "(other)", np.nan, "(missing)", "VTS")]
    found = [pyfunc.predict_rows(loaded.estimator, loaded.spec, frame).tolist() for frame in frames]
    assert found[0] == found[1] == found[2]  # no training row has DDS
    assert found[3] == found[4]
    assert len({tuple(scores) for scores in found}) == 3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_a_share_an_unseen_value_counts_as_a_missing_one(fit: Fit, estimator: str) -> None:
    model, trips = fit(ALL, estimator, other_share=0), rows(1000, 7)
    frame = trips.to_pandas().astype({"vendor": "str"})
    frames = (frame.assign(vendor=np.nan), frame.assign(vendor="never seen"), frame)
    a, b, c = (pyfunc.predict_rows(model.estimator, model.spec, frame) for frame in frames)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    plain = artifact.Model(model._files, use_compiled=False)
    np.testing.assert_array_max_ulp(model.probabilities(trips), plain.probabilities(trips), 1)


def test_trees_get_codes_hours_and_numbers_as_they_are(fit: Fit) -> None:
    columns = ["vendor", "pickup_datetime", "fare_amount", "trip_distance"]
    model = fit(columns, "hist_gradient_boosting")
    trips = pd.DataFrame(
        {
            "vendor": ["VTS", "Helix", None],
            "pickup_datetime": [pd.Timestamp("2009-01-01 17:05"), pd.NaT, pd.NaT],
            "fare_amount": [-1.0, 600.0, np.nan],
            "trip_distance": [-5, 208, np.nan],
        }
    )
    matrix = model.estimator["preprocess"].transform(pyfunc.normalize_frame(trips, model.spec["inputs"]))
    np.testing.assert_array_equal(matrix, [[2, 17, -1, -5], [3, np.nan, 600, 208], [4, *[np.nan] * 3]])
    assert model.estimator[-1].categorical_features == [0]


def test_categories_are_those_of_the_sample_unless_they_are_listed(fit: Fit) -> None:
    for categories, expected in (({}, ["CMT", "Helix", "VTS"]), ({"vendor": ["VTS", "DDS"]}, ["VTS"])):
        model = fit(["vendor", "fare_amount"], "logistic_regression", categories=categories)
        step = model.estimator["preprocess"].named_transformers_["categories"]["unseen"]
        assert step.levels_ == [[*expected, "(other)", "(missing)"]]


# ---- the user's code ----


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_derived_columns_are_part_of_the_model(fit: Fit, estimator: str) -> None:
    columns = ["payment_type", "fare_amount", "trip_distance"]
    model = fit(columns, estimator, CODE, is_tried=True, features="add_double")
    kinds = {feature["name"]: feature["kind"] for feature in model.spec["features"]}
    assert kinds == {"payment_type": "category", "double": "number", "long": "category"}
    trips = rows(500, 8)
    scores, derived = model.score_rows(trips)
    assert derived["double"].to_pylist()[:9] == [fare and 2 * fare for fare in trips["fare_amount"].to_pylist()[:9]]
    assert derived.schema.field("long").type == CATEGORY
    again = pyfunc.predict_rows(model.estimator, model.spec, trips.to_pandas()).astype(np.float32)
    np.testing.assert_array_max_ulp(scores, again, 1)
    assert model.linear is None


def test_any_frame_of_the_same_rows_will_do(fit: Fit) -> None:
    columns = ["payment_type", "fare_amount"]
    model = fit(columns, "logistic_regression", CODE, is_tried=True, features="in_pieces")
    trips = rows(300, 12)
    scores, derived = model.score_rows(trips)
    assert derived["payment_type"].to_pylist() == trips["payment_type"].to_pylist()
    assert derived.schema.field("nanoseconds").type == pa.timestamp("us")
    assert np.isfinite(scores).all()
    assert model.score_rows(trips.slice(0, 0))[1].num_rows == 0


def test_models_with_different_code_are_right_in_one_process(fit: Fit) -> None:
    arguments = (["payment_type", "fare_amount", "trip_distance"], "logistic_regression")
    first = fit(*arguments, CODE, features="add_double")
    second = fit(*arguments, CODE.replace("FACTOR = 2.0", "FACTOR = -7.0"), features="add_double")
    trips = rows(50, 9)
    for model, factor in ((first, 2.0), (second, -7.0), (first, 2.0)):
        expected = trips["fare_amount"].to_numpy(zero_copy_only=False) * factor
        np.testing.assert_array_equal(model.derive_frame(trips)["double"], expected)


def test_a_division_by_zero_gives_a_missing_value(fit: Fit) -> None:
    model = fit(["fare_amount", "trip_distance"], "hist_gradient_boosting", CODE, features="add_ratio")
    trips = rows(200, 11)
    is_short = trips["trip_distance"].fill_null(0).to_numpy() <= 3
    np.testing.assert_array_equal(model.derive_frame(trips)["ratio"].isna() >= is_short, np.ones(200, bool))
    assert np.isfinite(model.probabilities(trips)).all()


def test_code_is_not_imported_from_a_folder_that_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"tipline-code-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="Somebody else could change the code"):
        pyfunc.install_code("features.py", b"value = 1")


@pytest.mark.filterwarnings("ignore:A worker stopped:UserWarning")
def test_own_classes_work_in_other_processes(fit: Fit) -> None:
    model = fit(["fare_amount"], "stack", CODE, is_tried=True)  # fitted by joblib with n_jobs=2
    assert list(model.estimator.named_steps) == ["classifier"]
    trips = rows(200, 10)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (spawned,) = pool.map(model.estimator.predict_proba, [artifact.read_frame(trips, model.spec["inputs"])])
    np.testing.assert_array_equal(spawned[:, 1].astype(np.float32), model.probabilities(trips))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("center", "The column fare_amount of the function depends on other rows"),
        ("drop_rows", "drop_rows failed: TypeError: it has to return a DataFrame with the rows"),
        ("fail", "fail failed: KeyError: 'no such column'"),
        ("fail_on_parts", "On a part of the rows, the function failed: ValueError: too few rows"),
        ("vectorized", "vectorized is no function of features.py once the file has run"),
        ("twice", "The names of the columns are not different texts: fare_amount, trip_distance, fare_amount, trip"),
    ],
)
def test_a_function_that_is_not_row_by_row_is_refused(fit: Fit, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        fit(["fare_amount", "trip_distance"], "logistic_regression", CODE, is_tried=True, features=function)
    assert caught.value.parts[1] == "params.yaml, model.features"


def test_code_that_imports_a_file_beside_it_is_refused(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_it.py").write_text("FACTOR = 3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code = CODE.replace("FACTOR = 2.0", "from beside_it import FACTOR")
    columns = ["payment_type", "fare_amount", "trip_distance"]
    with pytest.raises(UsageError, match=r"cannot be loaded in another process: .*beside_it"):
        fit(columns, "logistic_regression", code, is_tried=True, features="add_double")


def test_numbers_can_be_categories(fit: Fit) -> None:
    model = fit(["fare_amount", "passenger_count"], "logistic_regression", categorical=["passenger_count"])
    assert [feature["kind"] for feature in model.spec["features"]] == ["number", "category"]
    assert model.linear is None
    trips = rows(100, 1)
    scores, derived = model.score_rows(trips)
    assert len(np.unique(scores)) > 10
    assert derived["passenger_count"].to_pylist()[:9] == [
        None if count is None else f"{count}.0" for count in trips["passenger_count"].to_pylist()[:9]
    ]
    with pytest.raises(UsageError, match="There is no column 'weekday'"):
        fit(["fare_amount"], "logistic_regression", categorical=["weekday"])
    with pytest.raises(UsageError, match="vendor is text and not in the list"):
        fit(["vendor"], "logistic_regression", categorical=[])
