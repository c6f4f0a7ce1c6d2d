"""From one prediction back to the published row, and to what made it."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests import workbench
from tipline import files
from tipline.ingest import readers
from tipline.ingest.columns import QUARANTINE_FILE
from tipline.ingest.conform import QUARANTINE
from tipline.model import artifact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tipline.paths import Paths

pytestmark = workbench.MLFLOW_WARNINGS
ROW = 4321


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, mlflow_store: Path) -> Paths:
    """A scored project whose registry is its own."""
    del mlflow_store
    paths = workbench.copy_project(workbench.scored(request), tmp_path)
    workbench.run(paths, "register")
    return paths


def values(printed: str, heading: str) -> dict[str, str]:
    """The lines of a section."""
    lines = printed.partition(f"\n{heading}\n")[2].partition("\n\n")[0].splitlines()
    return dict(line.strip().split(maxsplit=1) for line in lines if len(line.split()) > 1)


def test_contributions_add_up_to_the_stored_probability(
    project: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    code, printed = run_cli(project.root, "explain", "2009-02", str(ROW))
    assert code == 0, printed
    stored = pq.read_table(project.predictions / "month=2009-02")["tip_probability"][ROW].as_py()
    assert f"tip_probability {stored!r}" in printed
    why = values(printed, "why (log-odds)")
    columns = list(workbench.load_settings(project).model.columns)
    assert set(why) == {"start", *columns, "sum", "probability"}
    odds = sum(float(why[name].split()[0]) for name in ("start", *columns))
    assert 1 / (1 + math.exp(-odds)) == pytest.approx(stored, abs=1e-5)
    assert why["probability"].endswith("as stored")


def test_every_link_of_the_chain_is_named(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    code, printed = run_cli(project.root, "explain", "2009-02", str(ROW))
    assert code == 0
    told = workbench.read_json(project.predictions / "month=2009-02" / files.MANIFEST)
    training = workbench.read_json(project.champion / artifact.TRAINING)
    source = workbench.read_json(project.raw_manifest("2009-02"))
    for link in (
        told["key"]["trips"],
        told["key"]["model"],
        told["parts"][ROW // workbench.GROUP_ROWS]["sha256"],
        f"{told['made']['name']} version {told['made']['version']}",
        told["made"]["run"],
        told["made"]["git"],
        training["name"],
        training["data"],
        source["address"],
        source["sha256"],
    ):
        assert link in printed
    trip = workbench.read_prepared(project, "2009-02").slice(ROW, 1).to_pylist()[0]
    assert values(printed, "prepared row")["trip_distance"] == str(trip["trip_distance"])
    assert values(printed, "published row")["Trip_Distance"] == str(trip["trip_distance"])


def test_a_version_that_is_here_no_more_comes_from_the_registry(
    project: Paths, run_cli: Callable[..., tuple[int, str]]
) -> None:
    shutil.rmtree(project.champion)
    shutil.rmtree(project.challenger)
    code, printed = run_cli(project.root, "explain", "2009-01", "0")
    assert code == 0, printed
    assert values(printed, "why (log-odds)")["probability"].endswith("as stored")


def test_a_row_that_was_set_apart_is_explained_so(project: Paths, run_cli: Callable[..., tuple[int, str]]) -> None:
    apart = pq.read_table(project.prepared("2009-01") / QUARANTINE_FILE).schema
    assert apart.names == QUARANTINE.names
    row = {"row": 5000, "reason": "number of fields is not the header's"}
    table = QUARANTINE.empty_table().from_pylist([row], schema=QUARANTINE)
    pq.write_table(table, project.prepared("2009-01") / QUARANTINE_FILE)
    code, printed = run_cli(project.root, "explain", "2009-01", "5000")
    assert code == 2
    assert "set apart when the month was prepared: number of fields is not the header's" in printed


@pytest.mark.parametrize(
    ("month", "row", "said"),
    [
        ("2009-01", "5000", "no prediction for this row"),
        ("2009-01", "-1", "There is no such row"),
        ("2009-01", "9" * 30, "There is no such row"),
        ("2031-01", "0", "not among `months`"),
    ],
)
def test_a_row_that_is_not_there_is_told(
    project: Paths, run_cli: Callable[..., tuple[int, str]], month: str, row: str, said: str
) -> None:
    code, printed = run_cli(project.root, "explain", month, row)
    assert code == 2
    assert said in printed
    assert "Traceback" not in printed


def test_a_published_row_of_csv_is_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{number},x{number}" for number in range(500)]
    lines[7] = "too,many,fields"
    path = tmp_path / "month.csv"
    path.write_text("a,b\r\n\r\n" + "\r\n".join(lines) + "\r\n")
    monkeypatch.setattr(readers, "BLOCK_BYTES", 256)
    for row in (0, 8, 300, 499):
        assert readers.read_row(readers.open_month(path, "month"), row) == lines[row]
    assert readers.read_row(readers.open_month(path, "month"), 7) is None  # no prediction joins to it
    assert readers.read_row(readers.open_month(path, "month"), 500) is None
