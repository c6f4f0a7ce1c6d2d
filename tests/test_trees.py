"""Ensembles of trees are scored by kernels as their own libraries score them, whatever the values are."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow.parquet as pq
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from tests import workbench
from tests.test_pipeline import ALL, fit_model
from tests.test_pipeline import rows as draw_trips
from tipline import cluster, files, processes
from tipline.errors import TiplineError
from tipline.model import artifact, compiled, golden_rows, pyfunc, trees
from tipline.monitoring.counts import Counts
from tipline.paths import Paths, month_folder
from tipline.scoring import plan, preload, worker

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
pytestmark = workbench.MLFLOW_WARNINGS
ROWS, MANY = 400, 10**9
HOSTILE = [
    np.nan,
    np.inf,
    0.0,
    -0.0,
    5e-324,
    -1e-310,
    1e-36,
    -1e-36,
    1e-35,
    2e-35,
    1e300,
    -1e300,
    3.4e38,
    3.5e38,
    -np.inf,
]
# What the built-in preprocessing gives for a category: its place, or NaN if it is missing or unknown.
CODES = [np.nan, *range(40)]


def draw_training(generator: np.random.Generator, columns: int, categories: int) -> tuple[Matrix, Any]:
    """Draw rows with missing values, ties, tiny and huge numbers; the last columns are categories."""
    kinds: list[Callable[[], Any]] = [
        lambda: generator.normal(size=ROWS),
        lambda: generator.integers(-2, 3, ROWS),
        lambda: generator.normal(size=ROWS) * 10.0 ** generator.integers(-40, 30),
        lambda: np.float32(generator.normal(size=ROWS)),
        lambda: np.where(generator.random(ROWS) < 0.5, 0.0, generator.normal(size=ROWS) * 1e-35),
    ]
    matrix = np.stack([kinds[generator.integers(len(kinds))]().astype(float) for _ in range(columns)], axis=1)
    for column in range(columns - categories, columns):
        matrix[:, column] = generator.integers(0, generator.integers(2, 30), ROWS)
    matrix[generator.random(matrix.shape) < generator.choice([0, 0.1])] = np.nan
    plain = np.nan_to_num(matrix / np.nanmax(np.abs(matrix), axis=0).clip(1e-300))
    score = plain[:, 0] + (matrix[:, -1] % 3 == 1) + generator.normal(size=ROWS) / 2
    return matrix, score > np.median(score)


def create_classifier(library: str, seed: int, coded: list[int], count: int, leaves: int) -> Any:
    options: dict[str, Any]
    if library == "scikit-learn":
        options = {"max_iter": count, "max_leaf_nodes": leaves, "min_samples_leaf": 2}
        return HistGradientBoostingClassifier(**options, early_stopping=False, categorical_features=coded or None)
    if library == "xgboost":
        depth = min(leaves.bit_length(), 6)
        return xgboost.XGBClassifier(n_estimators=count, max_depth=depth, min_child_weight=0.1, n_jobs=1)
    options = {"num_leaves": leaves, "min_child_samples": 2, "min_data_per_group": 2, "cat_smooth": 1, "verbose": -1}
    options |= {"use_missing": seed % 2 == 1, "zero_as_missing": seed % 3 == 1, "max_cat_to_onehot": 2, "n_jobs": 1}
    return lightgbm.LGBMClassifier(n_estimators=count, **options, categorical_feature=coded or "")


def draw_rows(ensemble: trees.Ensemble, matrix: Matrix, categories: int, generator: np.random.Generator) -> Matrix:
    """Draw rows of training values, values at thresholds and beside them, and hostile ones."""
    nodes = np.concatenate(ensemble.trees)
    edges = nodes["threshold"][(nodes["left"] >= 0) & (nodes["set"] < 0)]
    near = [edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), np.float32(edges).astype(float)]
    result: Matrix = generator.choice(np.concatenate([*near, HOSTILE, matrix.ravel()]), size=(1000, matrix.shape[1]))
    result[generator.random(result.shape) < 0.1] = generator.choice(HOSTILE)
    for column in range(matrix.shape[1] - categories, matrix.shape[1]):
        result[:, column] = generator.choice(CODES, size=len(result))
    return result


def score_matrix(scorer: trees.TreeScorer, matrix: Matrix) -> Any:
    columns: list[trees.Column] = [partial(copy_rows, column) for column in matrix.T]
    return scorer.score_columns(columns, len(matrix))


def copy_rows(column: Any, rows: slice, out: Any) -> None:
    out[:] = column[rows]


@pytest.mark.parametrize("library", ["scikit-learn", "lightgbm", "xgboost"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    categories=st.integers(0, 2),
    size=st.sampled_from([(1, 2), (3, 31), (20, 8), (40, 64), (5, 200), (100, 4)]),
)
def test_kernels_equal_predict_proba(library: str, seed: int, categories: int, size: tuple[int, int]) -> None:
    categories, generator = 0 if library == "xgboost" else categories, np.random.default_rng(seed)
    columns = int(generator.integers(max(1, categories), 6))
    matrix, labels = draw_training(generator, columns, categories)
    classifier = create_classifier(library, seed, list(range(columns - categories, columns)), *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of LightGBM, about names; of casts that overflow
        classifier.fit(matrix, labels)
        ensemble = trees.convert_classifier(classifier)
        assert ensemble is not None
        rows = draw_rows(ensemble, matrix, categories, generator)
        expected = classifier.predict_proba(rows)[:, 1].astype(float)
    is_small = all((tree["left"] < 0).sum() <= trees.WORD for tree in ensemble.trees)
    for use_bits in (None, False, *([True] if is_small else [])):
        np.testing.assert_array_equal(score_matrix(trees.TreeScorer(ensemble, use_bits=use_bits), rows), expected)


def test_a_threshold_in_single_precision_has_an_equal_one_in_double() -> None:
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    limits = np.array([0, -0.0, 1, -1, 0.1, 16777217, largest, -largest, smallest, -smallest, np.inf], np.float32)
    last = trees.find_last_below(limits)
    with np.errstate(over="ignore"):
        assert (last.astype(np.float32) < limits).all()
        assert not (np.nextafter(last, np.inf).astype(np.float32) < limits).any()


def test_large_ensembles_are_scored_in_groups_or_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    matrix, labels = draw_training(generator, 5, 0)
    classifier = create_classifier("scikit-learn", 0, [], 50, 31).fit(matrix, labels)
    ensemble, expected = trees.convert_classifier(classifier), classifier.predict_proba(matrix)[:, 1]
    assert ensemble is not None
    for name, value in {"GROUP_BYTES": 1, "CHUNK_ROWS": 256, "MAX_TABLE_BYTES": 1}.items():
        monkeypatch.setattr(trees, name, value)
        np.testing.assert_array_equal(score_matrix(trees.TreeScorer(ensemble), matrix), expected)
    assert "steps" in trees.TreeScorer(ensemble).add_leaves.__qualname__
    for name in ("MAX_COLUMNS", "MAX_CODES"):
        with monkeypatch.context() as patch:
            patch.setattr(trees, name, 2)
            with pytest.raises(trees.TooLargeError):
                trees.TreeScorer(ensemble)
            assert compiled.create_scorer(classifier, [], MANY) is None


@pytest.mark.parametrize("weight", [1e4, -1e4])
def test_extreme_sums_of_leaves_have_the_probability_of_xgboost(weight: float) -> None:
    matrix = np.linspace(0, 1, ROWS)[:, np.newaxis]
    classifier = create_classifier("xgboost", 0, [], 30, 4).set_params(reg_lambda=0, learning_rate=50)
    classifier.fit(matrix, matrix[:, 0] * weight > weight / 2)
    ensemble, expected = trees.convert_classifier(classifier), classifier.predict_proba(matrix)[:, 1]
    assert ensemble is not None
    assert 0 < expected.min() < 1e-38
    np.testing.assert_array_equal(score_matrix(trees.TreeScorer(ensemble), matrix), expected.astype(float))


def test_other_classifiers_have_no_kernels() -> None:
    generator = np.random.default_rng(1)
    matrix, labels = draw_training(generator, 3, 0)
    extreme: dict[str, Any] = {"n_estimators": 3, "n_jobs": 1}
    light: dict[str, Any] = {**extreme, "verbose": -1}
    for classifier in (
        RandomForestClassifier(3),
        HistGradientBoostingClassifier(max_iter=3),
        lightgbm.LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, **light),
        lightgbm.LGBMClassifier(linear_tree=True, **light),
        lightgbm.LGBMClassifier(objective="cross_entropy", **light),
        xgboost.XGBClassifier(booster="dart", **extreme),
        xgboost.XGBClassifier(missing=0.0, **extreme),
        xgboost.XGBClassifier(feature_types=["c", "q", "q"], enable_categorical=True, **extreme),
    ):
        is_boosting = isinstance(classifier, HistGradientBoostingClassifier)
        target = generator.integers(0, 3, ROWS) if is_boosting else labels
        matrix[:, 0] = np.arange(ROWS) % 5
        assert trees.convert_classifier(classifier.fit(matrix, target)) is None, classifier


# ---- in a run ----


@pytest.fixture(scope="module")
def boosted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a model with golden rows."""
    model = fit_model(tmp_path_factory.mktemp("boosted"), ALL, "hist_gradient_boosting")
    spec = golden_rows.add_golden_rows(artifact.Model(model._files, use_compiled=False), draw_trips(100, 3))
    return {**model._files, pyfunc.SPEC: json.dumps(spec).encode()}


@pytest.mark.parametrize("estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"])
def test_a_model_with_kernels_equals_its_pipeline(tmp_path: Path, estimator: str) -> None:
    model, trips = fit_model(tmp_path, ALL, estimator), draw_trips(2000, 4)
    fast, plain = artifact.Model(model._files, rows=MANY), artifact.Model(model._files, use_compiled=False)
    assert (fast.form, model.form, plain.form) == artifact.FORMS
    assert fast.probabilities(trips).tobytes() == plain.probabilities(trips).tobytes()


def hide_numba() -> None:
    sys.modules.pop("tipline.model.kernels", None)
    vars(sys.modules["tipline.model"]).pop("kernels", None)
    sys.modules["numba"] = None  # type: ignore[assignment]


def convert_nothing(*, restore: bool = False) -> None:
    """Let this process know no kind of trees."""
    kept = vars(trees)
    kept.setdefault("converted", trees.convert_classifier)
    kept["convert_classifier"] = kept["converted"] if restore else lambda _: None


def test_all_workers_use_the_form_that_works_on_all(
    boosted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    digest = artifact.hash_artifact(boosted)

    def find_forms(form: str) -> set[str]:
        def find(form: str) -> str:
            return worker.get_worker_model(digest, form).form

        names = list(client.nthreads())
        return {client.submit(find, form, workers=[name], pure=False).result() for name in names}

    with cluster.connect_client(2) as client:
        with worker.send_model(client, boosted, digest, rows=1000) as form:
            assert {form} == find_forms("compiled") == {"compiled"}
        with worker.send_model(client, boosted, digest, rows=MANY) as form:
            assert {form} == find_forms("kernels") == {"kernels"}
        # One worker has no kernels, and nothing has failed.
        client.run(convert_nothing, workers=[*client.nthreads()][:1])
        with worker.send_model(client, boosted, digest, rows=MANY) as form:
            assert {form} == find_forms("compiled") == {"compiled"}
        client.run(convert_nothing, restore=True)
        assert not caplog.messages
        client.run(hide_numba, workers=[*client.nthreads()][:1])
        with worker.send_model(client, boosted, digest, rows=MANY) as form:
            assert {form} == find_forms("compiled") == {"compiled"}
            with pytest.raises(TiplineError, match="joined the run late"):
                find_forms("pipeline")
    (message,) = caplog.messages
    assert message.startswith("The kernels for trees failed: ModuleNotFoundError")
    assert message.endswith("so the model's own predict_proba is used")


@pytest.mark.parametrize("rows", [5_000_000, 1_000_000])
def test_the_forkserver_loads_a_champion_with_kernels_if_rows_are_many(
    boosted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    paths = Paths(tmp_path)
    paths.champion.mkdir(parents=True)
    for name, data in boosted.items():
        (paths.champion / name).write_bytes(data)
    files.write_json(paths.champion_ref, {"digest": artifact.hash_artifact(boosted)})
    for month, other in (("2009-01", "another model"), ("2009-02", artifact.hash_artifact(boosted))):
        files.write_json(paths.prepared(month) / files.MANIFEST, {"rows_out": rows})
        files.write_json(month_folder(paths.predictions, month) / files.MANIFEST, {"key": {"model": other}})
    checked: list[str] = []
    monkeypatch.setattr(golden_rows, "count_steps", lambda model: checked.append(model.form))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    preload.load_champion(paths)
    assert checked == (["kernels"] if rows > preload.MIN_ROWS else [])


def read_forms(paths: Paths) -> set[str]:
    manifests = (month_folder(paths.predictions, month) / files.MANIFEST for month in workbench.MONTHS)
    return {workbench.read_json(path)["form"] for path in manifests}


@pytest.fixture(scope="module")
def stumps_template(trained_template: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project whose champion has so many trees that kernels pay for its 20,000 rows on one worker."""
    paths = workbench.copy_project(trained_template, tmp_path_factory.mktemp("stumps"))
    train = {"estimator": "lightgbm.LGBMClassifier", "params": {"n_estimators": 4000, "num_leaves": 2}}
    workbench.change_settings(paths, train=train, cluster={"n_workers": 1})
    workbench.run(paths, "train")
    contents = artifact.read_artifact(paths.challenger)
    shutil.rmtree(paths.champion, ignore_errors=True)
    shutil.copytree(paths.challenger, paths.champion)
    ref = {"name": "tip-probability", "version": 2, "run": "0" * 32, "digest": artifact.hash_artifact(contents)}
    files.write_json(paths.champion_ref, ref)
    return paths


@pytest.fixture
def stumps(stumps_template: Paths, mlflow_store: Path) -> Paths:
    return workbench.copy_project(stumps_template, mlflow_store.parent.parent)


@pytest.mark.parametrize("way", ["forked", "spawned"])
def test_a_month_is_scored_with_kernels_and_a_resumed_run_stays_with_them(
    stumps: Paths,
    run_cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    if way == "spawned":
        monkeypatch.setattr(processes, "CAN_FORK", False)
    code, log = run_cli(stumps.root, "score")
    assert (code, read_forms(stumps)) == (0, {"kernels"}), log
    contents = artifact.read_artifact(stumps.champion)
    plain = artifact.load_model(contents, artifact.hash_artifact(contents), use_compiled=False)
    trips = workbench.as_batch(workbench.read_prepared(stumps, "2009-01"))
    parts = pq.read_table(month_folder(stumps.predictions, "2009-01"))
    assert parts["probability"].to_numpy().tobytes() == plain.probabilities(trips).tobytes()
    if way == "spawned":  # what resumes is the process that plans, however its workers start
        return
    # As if a run had been killed before the last block of the last month: too few rows are left for kernels to pay.
    (planned,) = leave_one_block_open(stumps)
    code, log = run_cli(stumps.root, "score")
    assert (code, read_forms(stumps)) == (0, {"kernels"}), log
    assert (
        f"{sum(block.rows for block in planned.blocks[:-1]):,} rows of a run that did not end are kept"
        in caplog.messages
    )
    assert f"scored {planned.blocks[-1].rows:,} rows" in log


def leave_one_block_open(paths: Paths) -> list[plan.Month]:
    """Put a published month back into staging, but its last part."""
    locations, month = plan.Locations.resolve(workbench.load_settings(paths), paths), workbench.MONTHS[-1]
    folder = month_folder(paths.predictions, month)
    manifest = workbench.read_json(folder / files.MANIFEST)
    staged = paths.staging / "predictions" / plan.name_staged_folder(month, manifest["key"], manifest["form"])
    shutil.move(folder, staged)
    (staged / files.MANIFEST).unlink()
    (staged / manifest["parts"][-1]["name"]).unlink()
    facts = {"key": files.hash_json(manifest["key"]), "form": manifest["form"], "counted": manifest["counted"]}
    seconds, counts = dict.fromkeys(plan.PHASES, 0.0), Counts().to_json()
    for part in manifest["parts"][:-1]:
        marker = facts | part | {"counts": counts, "seconds": seconds}
        files.write_json(staged.with_name(staged.name + plan.MARKERS) / f"{part['name']}.json", marker)
    spec = artifact.read_spec(artifact.read_artifact(paths.champion))
    return plan.plan_months(locations, workbench.MONTHS, manifest["key"]["model"], spec)[0]


def test_open_months_use_another_form_if_a_worker_that_joins_late_has_no_kernels(
    stumps: Paths, run_cli: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send, stack = worker.send_model, contextlib.ExitStack()
    (tmp_path / "numba.py").write_text("raise ImportError('not here')")

    @contextlib.contextmanager
    def send_and_join(client: cluster.Client, *rest: Any) -> Iterator[str]:
        with send(client, *rest) as form:
            if form == "kernels":
                monkeypatch.setenv("PYTHONPATH", str(tmp_path))
                stack.enter_context(workbench.workers(address, 1))
                client.wait_for_workers(2)
            yield form

    monkeypatch.setattr(worker, "send_model", send_and_join)
    with stack, workbench.scheduler_process(tmp_path) as (address, _), workbench.workers(address, 1):
        monkeypatch.setenv(processes.ADDRESS, address)
        code, log = run_cli(stumps.root, "score")
    assert code == 0, log
    assert "compiled" in read_forms(stumps)  # months that were finished before keep their kernels
    assert "A worker that joined late cannot use the model's kernels form. Open months start again." in log


READ_ONLY = """
import os, sys
from pathlib import Path
os.access = lambda *_: False  # root may write anywhere
from tipline import processes
processes.set_kernel_cache(Path(sys.argv[1]))
import numpy as np
from tipline.model import kernels
kernels.apply_link(np.zeros((2, 256)), np.float64(1), np.float64(1), np.float64(9))
"""


def test_kernels_are_kept_in_the_project_if_the_package_is_read_only(tmp_path: Path) -> None:
    package, cache = tmp_path / "package" / "tipline", tmp_path / "cache"
    shutil.copytree(Path(cluster.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "model" / "__pycache__").write_text("no folder")
    environment = os.environ | {"PYTHONPATH": str(package.parent), "HOME": "/proc/no", "XDG_CACHE_HOME": "/proc/no"}
    command = [sys.executable, "-c", READ_ONLY, str(cache)]
    subprocess.run(command, env=environment, check=True)
    assert list(cache.rglob("kernels.apply_link*.nbc"))
    command[2] = READ_ONLY.replace("False", "True")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "RuntimeError: cannot cache function" in done.stderr
