"""`explain`: from one prediction back to the published row and to what made it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import workbench
from tipline import files
from tipline.ingest import readers
from tipline.ingest.columns import QUARANTINE_FILE
from tipline.ingest.schema import Csv
from tipline.model import artifact
from tipline.paths import Paths

Run = Callable[..., tuple[int, str]]
pytestmark = workbench.MLFLOW_WARNINGS
ROW = 4321


def read_section(printed: str, heading: str) -> dict[str, str]:
    lines = printed.partition(f"\n{heading}\n")[2].partition("\n\n")[0].splitlines()
    return dict(line.strip().split(maxsplit=1) for line in lines if len(line.split()) > 1)


@pytest.mark.usefixtures("_on_cluster")
def test_every_link_of_the_chain_is_printed(registered_project: Paths, run_cli: Run) -> None:
    project = registered_project
    code, printed = run_cli(project.root, "explain", "2009-02", str(ROW))
    assert code == 0, printed
    manifest = workbench.read_json(project.predictions / "month=2009-02" / files.MANIFEST)
    made, part = manifest["made"], manifest["parts"][ROW // workbench.GROUP_ROWS]
    training = workbench.read_json(project.champion / artifact.TRAINING)
    source = workbench.read_json(project.raw_manifest("2009-02"))
    key = dict(manifest["key"])
    links = [
        *key.pop("columns").values(),
        *key.values(),
        part["sha256"],
        f"{made['name']} version {made['version']}",
        made["run"],
    ]
    links += [made["git"], training["name"], training["data"], source["address"], source["sha256"]]
    assert [link for link in links if str(link) not in printed] == []
    trip = workbench.read_prepared(project, "2009-02").slice(ROW, 1).to_pylist()[0]
    assert read_section(printed, "prepared row")["trip_distance"] == str(trip["trip_distance"])
    assert read_section(printed, "published row")["Trip_Distance"] == str(trip["trip_distance"])
    stored = pq.read_table(project.predictions / "month=2009-02")["probability"][ROW].as_py()
    assert f"probability {stored!r}" in printed
    why = read_section(printed, "why (log-odds)")
    columns = list(workbench.load_settings(project).model.columns)
    assert set(why) == {"start", *columns, "sum", "probability"}
    odds = sum(float(why[name].split()[0]) for name in ("start", *columns))
    assert 1 / (1 + math.exp(-odds)) == pytest.approx(stored, abs=1e-5)
    assert why["probability"].endswith("as stored")

    # Boosting of scikit-learn has no contributions.
    boosting = {"estimator": "hist_gradient_boosting", "params": {"max_iter": 5}, "calibration": "sigmoid"}
    workbench.change_settings(project, train=boosting)
    workbench.run(project, "train")
    shutil.copytree(project.challenger, project.champion, dirs_exist_ok=True)
    digest = artifact.read_digest(project.champion)
    files.write_json(project.champion_ref, workbench.read_json(project.champion_ref) | {"digest": digest})
    workbench.run(project, "score")
    code, printed = run_cli(project.root, "explain", "2009-02", str(ROW))
    why = read_section(printed, "why (log-odds)")
    reason = "no contributions, because the model is neither linear nor of LightGBM or XGBoost"
    assert why["probability"].endswith(f"as stored; {reason}")
    assert "before sigmoid" in printed


def test_a_model_that_the_project_no_longer_has_is_reported_with_the_rest(scored_project: Paths, run_cli: Run) -> None:
    digest = workbench.read_json(scored_project.predictions / "month=2009-01" / files.MANIFEST)["key"]["model"]
    shutil.rmtree(scored_project.root / "models")
    code, printed = run_cli(scored_project.root, "explain", "2009-01", "0")
    assert code == 0, printed
    assert "replaced in this project; to score the month with the champion: dvc repro" in printed
    assert read_section(printed, "model")["digest"] == digest


def test_a_row_without_a_prediction_is_refused(scored_project: Paths, run_cli: Run) -> None:
    path = scored_project.prepared("2009-01") / QUARANTINE_FILE
    row = {"row": 5000, "reason": "number of fields is not the header's"}
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(path)), path)
    for month, number, message in (
        ("2009-01", "5000", f"quarantined by `prepare`: {row['reason']}"),
        ("2009-01", "5001", "no prediction for this row"),
        ("2009-01", "-1", "out of range"),
        ("2009-01", "9" * 30, "out of range"),
        ("2031-01", "0", "not in `months`"),
    ):
        code, printed = run_cli(scored_project.root, "explain", month, number)
        assert code == 2
        assert message in printed
    for name, todo in (("part-00000.parquet", "tipline verify 2009-01"), (files.MANIFEST, "dvc repro score")):
        (scored_project.predictions / "month=2009-01" / name).unlink()
        code, printed = run_cli(scored_project.root, "explain", "2009-01", "0")
        assert code == 1
        assert todo in printed


def test_a_published_row_of_csv_is_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{number},x{number}" for number in range(500)]
    lines[7] = "too,many,fields"
    path = tmp_path / "month.csv"
    path.write_text("a,b\r\n\r\n" + "\r\n".join(lines) + "\r\n")
    monkeypatch.setattr(readers, "BLOCK_BYTES", 256)
    # No prediction joins to row 7.
    for row, line in ((0, lines[0]), (7, None), (8, lines[8]), (300, lines[300]), (499, lines[499]), (500, None)):
        assert readers.read_row(readers.open_month(path, "month", Csv()), row) == line
