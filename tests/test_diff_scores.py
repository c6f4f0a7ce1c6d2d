"""Two versions are compared over all rows in bounded memory, with the same figures however the rows are cut up."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests import test_foreign, workbench
from tipline import cluster, files
from tipline.commands import compare
from tipline.evaluation import differences
from tipline.evaluation.differences import Difference
from tipline.model import artifact
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.model.pyfunc import Probabilities
    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS


@pytest.fixture(scope="module")
def registered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path
) -> Paths:
    """A scored project with two versions; not to be changed, but for its reports."""
    paths = workbench.copy_project(workbench.scored(request), tmp_path_factory.mktemp("registered"))
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
        workbench.run(paths, "register")
        shutil.copytree(paths.challenger, paths.root / "first")
        workbench.change_settings(paths, train={"params": {"C": 0.001}})
        workbench.run(paths, "train", "register")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return paths


@pytest.fixture(autouse=True)
def _on_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))


@pytest.fixture
def project(registered: Paths) -> Paths:
    """The registered project, without reports of an earlier test."""
    shutil.rmtree(registered.root / "reports" / "diff_scores", ignore_errors=True)
    return registered


@pytest.fixture
def damaged(project: Paths, tmp_path: Path) -> str:
    """The prepared months elsewhere, where a test may damage them."""
    shutil.copytree(project.root / "data" / "trips", tmp_path / "trips")
    return str(tmp_path / "trips")


def compare_versions(paths: Paths, *arguments: Any) -> list[str]:
    return list(compare.run(workbench.load_settings(paths), paths, ("1", "2"), *arguments))


def report(paths: Paths) -> Any:
    return workbench.read_json(paths.root / "reports" / "diff_scores" / "1-2.json")


def movers(paths: Paths) -> list[dict[str, str]]:
    with (paths.root / "reports" / "diff_scores" / "1-2.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def exact(paths: Paths, month: str) -> tuple[Probabilities, Probabilities]:
    """Both versions' scores of a month."""
    contents = [artifact.read_artifact(folder) for folder in (paths.root / "first", paths.challenger)]
    a, b = (artifact.load_model(files, artifact.hash_artifact(files)) for files in contents)
    trips = workbench.as_batch(workbench.read_prepared(paths, month))
    return a.probabilities(trips), b.probabilities(trips)


def test_the_figures_are_those_of_the_exact_scores(project: Paths) -> None:
    compare_versions(project)
    told = report(project)
    scores = [exact(project, month) for month in workbench.MONTHS]
    everything = tuple(np.concatenate(of_model) for of_model in zip(*scores, strict=True))
    for month, (a, b) in zip([*told["months"], told["all"]], [*scores, everything], strict=True):
        difference = b.astype(float) - a
        assert month["rows"] == len(a)
        assert month["rank_correlation"] == pytest.approx(spearmanr(a, b).statistic, abs=1e-4)
        assert month["mean_a"] == pytest.approx(a.mean(dtype=float), abs=1e-11)
        assert month["mean_b"] == pytest.approx(b.mean(dtype=float), abs=1e-11)
        assert month["mean_difference"] == pytest.approx(difference.mean(), abs=1e-11)
        assert month["mean_absolute_difference"] == pytest.approx(np.abs(difference).mean(), abs=1e-11)
        assert month["largest_difference"] == np.abs(difference).max()
        assert month["crossed_up"] == ((a <= 0.5) & (b > 0.5)).sum()
        assert month["crossed_down"] == ((a > 0.5) & (b <= 0.5)).sum()
        assert month["crossed_share"] == ((a > 0.5) != (b > 0.5)).mean()
    assert [month["month"] for month in told["months"]] == list(workbench.MONTHS)
    assert told["all"]["rank_correlation"] < 0.9999
    assert told["all"]["crossed_up"] + told["all"]["crossed_down"] > 0


def test_the_report_names_the_versions_and_holds_no_time_or_path(project: Paths) -> None:
    compare_versions(project, ["2009-02"])
    told = report(project)
    digests = [artifact.read_digest(folder) for folder in (project.root / "first", project.challenger)]
    assert [(told[letter]["version"], told[letter]["digest"]) for letter in "ab"] == [
        *zip((1, 2), digests, strict=True)
    ]
    assert (told["threshold"], told["failed"]) == (0.5, {})
    first = workbench.read_tree(project.root / "reports" / "diff_scores")
    compare_versions(project, ["2009-02"])
    assert workbench.read_tree(project.root / "reports" / "diff_scores") == first


def test_the_movers_are_the_rows_that_differ_most_with_what_the_models_saw(project: Paths) -> None:
    compare_versions(project, [], 0.5, 7)
    rows = movers(project)
    assert len(rows) == 7 * len(workbench.MONTHS)
    largest = []
    for month in workbench.MONTHS:
        a, b = exact(project, month)
        trips = workbench.read_prepared(project, month)
        gaps = np.abs(b.astype(float) - a)
        expected = np.lexsort((np.arange(len(a)), -gaps))[:7].tolist()
        mine = [row for row in rows if row["month"] == month]
        assert [row["rank_in_month"] for row in mine] == [str(rank) for rank in range(1, 8)]
        assert [int(row["row"]) for row in mine] == [trips["row"][place].as_py() for place in expected]
        assert [float(row["score_a"]) for row in mine] == [float(a[place]) for place in expected]
        assert [float(row["score_b"]) for row in mine] == [float(b[place]) for place in expected]
        assert [row["payment_type"] for row in mine] == [
            trips["payment_type"][place].as_py() or "" for place in expected
        ]
        largest += [gaps[place] for place in expected]
    told = [abs(float(row["difference"])) for row in rows]
    assert told == sorted(largest, reverse=True)
    assert {"vendor", "pickup_datetime", "trip_distance", "fare_amount"} < set(rows[0])


def test_a_threshold_moves_what_crosses_it(project: Paths) -> None:
    compare_versions(project, ["2009-01"], 0.9)
    a, b = exact(project, "2009-01")
    told = report(project)["months"][0]
    assert (told["crossed_up"], told["crossed_down"]) == (
        ((a <= 0.9) & (b > 0.9)).sum(),
        ((a > 0.9) & (b <= 0.9)).sum(),
    )


def test_other_row_groups_and_one_local_worker_give_the_same_bytes(
    project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    months = ["2009-01", "2024-01"]
    compare_versions(project, months)
    first = workbench.read_tree(project.root / "reports" / "diff_scores")
    other = workbench.copy_project(project, tmp_path)
    workbench.change_settings(other, cluster={"n_workers": 1})
    workbench.small_row_groups(monkeypatch, 731)
    workbench.prepare_again(other, *months)
    monkeypatch.delenv(cluster.ADDRESS)
    compare_versions(project, months, 0.5, 10, str(other.root / "data" / "trips"))
    assert workbench.read_tree(project.root / "reports" / "diff_scores") == first


def test_no_predictions_and_no_version_are_touched(project: Paths) -> None:
    before = workbench.read_tree(project.predictions), workbench.read_tree(project.champion)
    compare_versions(project)
    assert (workbench.read_tree(project.predictions), workbench.read_tree(project.champion)) == before


def test_the_terminal_shows_months_and_movers(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "diff-scores", "champion", "2", "--movers", "3", "--threshold", "0.4")
    assert code == 0, printed
    lines = printed.splitlines()
    assert re.fullmatch(r"A: version 1, [\d,]+x7 C=1.0 logistic_regression", lines[0])
    assert re.fullmatch(r"B: version 2, [\d,]+x7 C=0.001 logistic_regression", lines[1])
    assert [line.split()[0] for line in lines[3:8]] == [*workbench.MONTHS, "all"]
    start = lines.index("the rows that move most:") + 1
    assert lines[start].split()[:5] == ["month", "row", "score_a", "score_b", "difference"]
    assert lines[start + 4 :] == ["reports/diff_scores/1-2.json; the movers: 1-2.csv"]
    assert report(project)["threshold"] == 0.4
    assert max(map(len, lines)) <= 160


def test_a_version_is_not_compared_with_itself(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "diff-scores", "champion", "1")
    assert code == 0
    assert "Both are the same model" in printed
    assert not (project.root / "reports" / "diff_scores").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1", "7"), "tip-probability has no version 7; there are: 2, 1."),
        (("latest", "2"), "'latest' is no version"),
        (("1", "2", "--threshold", "50"), "--threshold"),
        (("1", "2", "--movers", "0"), "--movers"),
        (("1", "2", "2009-13"), "'2009-13' is not a month"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    project: Paths, run_cli: Run, arguments: tuple[str, ...], words: str
) -> None:
    code, printed = run_cli(project.root, "diff-scores", *arguments)
    assert code == 2
    assert words in printed
    assert "to do: " in printed


def test_without_a_champion_that_is_said(project: Paths, run_cli: Run) -> None:
    with store.connect_store(project) as client:
        client.delete_registered_model_alias("tip-probability", model_versions.CHAMPION)
    try:
        code, printed = run_cli(project.root, "diff-scores", "champion", "2")
    finally:
        with store.connect_store(project) as client:
            model_versions.set_champion(client, model_versions.get_version(client, "tip-probability", 1, ""))
    assert code == 2
    assert "has no champion yet" in printed


def test_a_month_that_is_not_prepared_says_what_to_run(project: Paths, run_cli: Run) -> None:
    code, printed = run_cli(project.root, "diff-scores", "1", "2", "2009-07")
    assert code == 1
    assert "The month is not prepared" in printed
    assert "dvc repro -f prepare@2009-07" in printed


@pytest.mark.parametrize("damage", ["not prepared", "cut off", "overwritten"])
def test_a_month_that_fails_is_left_out_and_the_others_are_told(
    project: Paths, run_cli: Run, damaged: str, tmp_path: Path, damage: str
) -> None:
    trips = tmp_path / "trips" / "month=2009-02" / "trips.parquet"
    data = trips.read_bytes()
    if damage == "not prepared":
        (trips.parent / files.MANIFEST).unlink()
    elif damage == "cut off":
        trips.write_bytes(data[: len(data) // 2])
    else:
        trips.write_bytes(data[:4] + b"\xff" * 20_000 + data[20_004:])
    code, printed = run_cli(project.root, "diff-scores", "1", "2", "--trips", damaged)
    assert code == 4, printed
    assert "2009-02   failed: " in printed
    assert "1 of 4 months failed" in printed
    assert "defect" not in printed
    told = report(project)
    others = [month for month in workbench.MONTHS if month != "2009-02"]
    assert [month["month"] for month in told["months"]] == others
    assert list(told["failed"]) == ["2009-02"]
    assert told["all"]["rows"] == 5000 * len(others)
    assert {row["month"] for row in movers(project)} == set(others)


def test_files_that_are_not_the_registered_ones_are_refused(project: Paths, run_cli: Run, tmp_path: Path) -> None:
    trace = tmp_path / "planted code has run"
    code_file = min((project.root / "mlartifacts").rglob(artifact.CODE))
    data = code_file.read_bytes()
    try:
        code_file.write_bytes(data + f"\nopen({str(trace)!r}, 'w').close()\n".encode())
        code, printed = run_cli(project.root, "diff-scores", "1", "2")
    finally:
        code_file.write_bytes(data)
    assert code == 1
    assert "not those that were registered" in printed
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*pickle.*")
@pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*")
def test_a_version_of_somebody_elses_is_compared_before_it_is_promoted(
    request: pytest.FixtureRequest, mlflow_store: Path, run_cli: Run
) -> None:
    paths = workbench.copy_project(workbench.scored(request), mlflow_store.parent.parent)
    workbench.run(paths, "register")
    model = test_foreign.fitted(paths)
    number = test_foreign.add_version(paths, model, test_foreign.SIGNATURE, pyfunc_predict_fn="predict_proba")
    code, printed = run_cli(paths.root, "diff-scores", "champion", str(number), "2009-02")
    assert code == 0, printed
    assert f"B: version {number}, not made by tipline" in printed
    theirs = model.predict_proba(test_foreign.frame(paths, "2009-02")[test_foreign.COLUMNS[:2]])[:, 1]
    told = workbench.read_json(paths.root / "reports" / "diff_scores" / f"1-{number}.json")
    assert told["months"][0]["mean_b"] == pytest.approx(theirs.astype(np.float32).mean(dtype=float), abs=1e-11)
    with store.connect_store(paths) as client:
        champion = model_versions.get_champion(client, "tip-probability")
    assert champion is not None
    assert int(champion.version) == 1


# ---- the counts themselves ----


def pairs(rows: int, spread: float, noise: float, seed: int = 0) -> tuple[Probabilities, Probabilities]:
    """Scores of two models that agree but for some noise, in groups as payment types make them."""
    random = np.random.default_rng(seed)
    odds = random.choice([-7.0, -1.0, 2.0], rows) + random.uniform(-spread / 2, spread / 2, rows)
    both = (odds, odds + random.normal(0, noise, rows))
    a, b = ((1 / (1 + np.exp(-one))).astype(np.float32) for one in both)
    return a, b


def counted(a: Probabilities, b: Probabilities, threshold: float = 0.5) -> Difference:
    """Count scores, with bands by a small part of them."""
    return Difference.of(
        a, b, (differences.compute_edges(a[:16_000]), differences.compute_edges(b[:16_000])), threshold
    )


@pytest.mark.parametrize("spread", [0.0001, 0.1, 3.0])
@pytest.mark.parametrize("noise", [0.001, 0.1, 2.0])
def test_the_rank_correlation_is_right_to_a_ten_thousandth(spread: float, noise: float) -> None:
    a, b = pairs(200_000, spread, noise)
    assert counted(a, b).rank_correlation() == pytest.approx(spearmanr(a, b).statistic, abs=1e-4)


def test_the_counts_of_parts_are_those_of_all_rows_whatever_the_parts() -> None:
    a, b = pairs(50_000, 3.0, 1.0)
    edges = differences.compute_edges(a), differences.compute_edges(b)
    whole = Difference().plus(Difference.of(a, b, edges, 0.3), 1)
    random = np.random.default_rng(1)
    for _ in range(5):
        cuts = np.sort(random.choice(len(a), 20)).tolist()
        parts = [Difference.of(*part, edges, 0.3) for part in zip(np.split(a, cuts), np.split(b, cuts), strict=True)]
        total = Difference()
        for place in random.permutation(len(parts)):
            total = total.plus(parts[place], 1)
        assert json.dumps(total.figures()) == json.dumps(whole.figures())
        np.testing.assert_array_equal(total.joint, whole.joint)


def test_ties_among_the_movers_are_settled_by_month_and_row() -> None:
    rows = np.array([5, 3, 9, 1, 7])
    assert differences.find_largest(np.array([0.2, 0.1, 0.2, 0.2, 0.3]), rows, 3).tolist() == [4, 3, 0]
    assert differences.find_largest(np.array([0.0]), np.array([4]), 3).tolist() == [0]
    named = (("2009-02", 1, 0.1), ("2009-01", 2, -0.1), ("2009-01", 1, 0.1), ("2009-03", 1, -0.2))
    equal = [{"month": month, "row": row, "difference": gap} for month, row, gap in named]
    kept = Difference(movers=equal[:2]).plus(Difference(movers=equal[2:]), 3).movers
    assert [(mover["month"], mover["row"]) for mover in kept] == [("2009-03", 1), ("2009-01", 1), ("2009-01", 2)]


def test_models_that_do_not_tell_rows_apart_have_no_rank_correlation() -> None:
    a, constant = np.array([0, 1, 1e-30, 0.5], dtype=np.float32), np.full(4, 0.25, dtype=np.float32)
    assert counted(a, constant).figures()["rank_correlation"] is None
    nothing = Difference().figures()
    assert nothing == dict.fromkeys(nothing) | {"rows": 0, "crossed_up": 0, "crossed_down": 0}


def test_counts_arrive_as_they_left_in_less() -> None:
    a, b = pairs(200_000, 3.0, 0.1)
    difference = counted(a, b)
    data = pickle.dumps(difference)
    arrived = pickle.loads(data)  # noqa: S301 (our own)
    np.testing.assert_array_equal(arrived.joint, difference.joint)
    assert arrived.figures() == difference.figures()
    assert len(data) < difference.joint.nbytes / 4
