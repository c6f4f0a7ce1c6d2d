"""`compare`: two versions are compared over all rows, with the same report on any workers."""

import csv
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests import workbench
from tests.conftest import forget_store
from tipline import cluster
from tipline.arrays import Probabilities
from tipline.commands import compare
from tipline.model import artifact
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
pytestmark = workbench.MLFLOW_WARNINGS
REPORT = "reports/compare/1-2.json"


@pytest.fixture(scope="module")
def two_versions(scored_template: Paths, dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A scored project with two versions; read it, do not change it."""
    paths = workbench.copy_with_store(scored_template, tmp_path_factory.mktemp("registered"))
    with pytest.MonkeyPatch.context() as monkeypatch, forget_store():
        monkeypatch.setenv(cluster.ADDRESS, dask_address)
        shutil.copytree(paths.challenger, paths.root / "first")
        workbench.change_settings(paths, train={"params": {"C": 0.001}})
        workbench.run(paths, "train", "register")
    return paths


@pytest.fixture
def project(two_versions: Paths, dask_address: str, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """That project, on the session's cluster."""
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    return two_versions


def compare_versions(paths: Paths, *arguments: Any) -> dict[str, bytes]:
    list(compare.run(workbench.load_settings(paths), paths, ("1", "2"), *arguments))
    return workbench.read_tree(paths.root / "reports" / "compare")


def score_exactly(paths: Paths, month: str) -> tuple[Probabilities, Probabilities]:
    contents = [artifact.read_artifact(folder) for folder in (paths.root / "first", paths.challenger)]
    a, b = (artifact.load_model(files, artifact.hash_artifact(files)) for files in contents)
    trips = workbench.as_batch(workbench.read_prepared(paths, month))
    return a.probabilities(trips), b.probabilities(trips)


def test_figures_and_largest_changes_are_those_of_the_exact_scores(project: Paths) -> None:
    threshold, expected, scores = 0.9, [], []
    compare_versions(project, [], threshold, 7)
    report = workbench.read_json(project.root / REPORT)
    for month in workbench.MONTHS:
        trips, (a, b) = workbench.read_prepared(project, month), score_exactly(project, month)
        scores.append((a, b))
        for position in np.argsort(-np.abs(b.astype(float) - a), kind="stable")[:7].tolist():
            row = {"month": month, "row": trips["row"][position].as_py()}
            row |= {"score_a": float(a[position]), "score_b": float(b[position])}
            row |= {"difference": float(b[position]) - float(a[position])}
            expected.append({**row, "payment_type": trips["payment_type"][position].as_py() or ""})
    firsts, seconds = zip(*scores, strict=True)
    scores.append((np.concatenate(firsts), np.concatenate(seconds)))
    for month, (a, b) in zip([*report["months"], report["all"]], scores, strict=True):
        difference = b.astype(float) - a
        assert month["rows"] == len(a)
        assert month["mean_a"] == pytest.approx(a.mean(dtype=float), abs=1e-11)
        assert month["mean_b"] == pytest.approx(b.mean(dtype=float), abs=1e-11)
        assert month["mean_difference"] == pytest.approx(difference.mean(), abs=1e-11)
        assert month["mean_absolute_difference"] == pytest.approx(np.abs(difference).mean(), abs=1e-11)
        assert month["largest_difference"] == np.abs(difference).max()
        assert month["crossed_up"] == ((a <= threshold) & (b > threshold)).sum()
        assert month["crossed_down"] == ((a > threshold) & (b <= threshold)).sum()
        assert month["crossed_share"] == ((a > threshold) != (b > threshold)).mean()
    assert [month["month"] for month in report["months"]] == list(workbench.MONTHS)
    assert report["all"]["crossed_up"] + report["all"]["crossed_down"] > 0
    expected.sort(key=lambda row: (-abs(row["difference"]), row["month"], row["row"]))
    with (project.root / REPORT).with_suffix(".csv").open(newline="") as file:
        changes = list(csv.DictReader(file))
    assert [{name: row[name] for name in expected[0]} for row in changes] == [
        {name: str(value) for name, value in row.items()} for row in expected[:7]
    ]
    assert {"vendor", "pickup_datetime", "trip_distance", "fare_amount"} < set(changes[0])


def test_equal_comparisons_write_equal_files_and_nothing_else(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before, months = workbench.read_tree(project.root / "data"), ["2009-01", "2024-01"]
    first = compare_versions(project, months)
    assert compare_versions(project, months) == first
    assert workbench.read_tree(project.root / "data") == before
    monkeypatch.delenv(cluster.ADDRESS)  # local workers
    assert compare_versions(project, months) == first


def test_the_report_is_printed(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "compare", "champion", "2", "--largest", "3", "--threshold", "0.4")
    assert code == 0, printed
    lines, report = printed.splitlines(), workbench.read_json(project.root / REPORT)
    assert re.fullmatch(r"A: version 1, [\d,]+x7 C=1.0 logistic_regression", lines[0])
    assert re.fullmatch(r"B: version 2, [\d,]+x7 C=0.001 logistic_regression", lines[1])
    assert [line.split()[0] for line in lines[3:8]] == [*workbench.MONTHS, "all"]
    assert lines[9].split()[:5] == ["month", "row", "score_a", "score_b", "difference"]
    assert lines[13:] == ["reports/compare/1-2.json; the largest changes: 1-2.csv"]
    assert max(map(len, lines)) <= 160
    digests = [artifact.read_digest(folder) for folder in (project.root / "first", project.challenger)]
    assert [(report[letter]["version"], report[letter]["digest"]) for letter in "ab"] == [*enumerate(digests, 1)]
    assert report["threshold"] == 0.4
    code, printed = run_cli(project.root, "compare", "champion", "1")
    assert code == 0
    assert "Both are the same model" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1", "7"), "tip-probability has no version 7. Versions: 2, 1."),
        (("latest", "2"), "has no version 'latest'"),
        (("1", "2", "--threshold", "50"), "--threshold"),
        (("1", "2", "--largest", "0"), "--largest"),
        (("1", "2", "2009-13"), "'2009-13' is not a month"),
    ],
)
def test_mistakes_are_usage_errors(project: Paths, run_cli: Run, arguments: tuple[str, ...], message: str) -> None:
    code, printed = run_cli(project.root, "compare", *arguments)
    assert code == 2
    assert message in printed
    assert "to do: " in printed
