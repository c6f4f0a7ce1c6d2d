"""`tipline upstream`: months that were published again are named, fetched, scored, and compared with what they were."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import servers, stories, workbench
from tests.workbench import read_json
from tipline.commands import upstream
from tipline.paths import Paths
from tipline.scoring import plan
from tipline.storage import open_storage

RunCli = Callable[..., tuple[int, str]]
MakeProject = Callable[..., Paths]

pytestmark = pytest.mark.usefixtures("_short_pauses")
MONTHS = ("2009-01", "2009-02", "2009-03")
CSV, NEW_CSV = b"a,b\n1,2\n" * 1000, b"a,b\n3,4\n" * 2000


@pytest.fixture
def shelf() -> Iterator[servers.Shelf]:
    with servers.shelf() as server:
        server.files |= {f"/{month}.csv": CSV for month in MONTHS}
        server.headers["Last-Modified"] = "Sun, 01 Mar 2009 00:00:00 GMT"
        yield server


def download(run_cli: RunCli, paths: Paths) -> None:
    for month in MONTHS:
        assert run_cli(paths.root, "download", month)[0] == 0


def test_months_that_a_server_states_differently_are_listed_and_others_are_not_hidden(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf
) -> None:
    paths = make_project(source=shelf.address("/{month}.csv"))
    download(run_cli, paths)
    assert run_cli(paths.root, "upstream")[0] == 0
    shelf.headers["Last-Modified"] = "Wed, 01 Apr 2009 00:00:00 GMT"  # alone, it says nothing
    code, printed = run_cli(paths.root, "upstream")
    assert (code, printed) == (0, "3 months: 0 published again, 0 not known\n")
    shelf.files["/2009-03.csv"] = NEW_CSV
    del shelf.files["/2009-01.csv"]
    code, printed = run_cli(paths.root, "upstream")
    assert code == 6
    assert printed.startswith("2009-01: not known: The source does not have this month. where: ")
    old, new = servers.etag(CSV), servers.etag(NEW_CSV)
    times = "modified Sun, 01 Mar 2009 00:00:00 GMT -> Wed, 01 Apr 2009 00:00:00 GMT"
    expected = f"2009-03: 2009-03.csv: size {len(CSV)} -> {len(NEW_CSV)}, version {old} -> {new}, {times}\n"
    assert f"{expected}3 months: 1 published again, 1 not known\n" in printed
    assert run_cli(paths.root, "upstream", "2009-02")[0] == 0
    assert run_cli(paths.root, "upstream", "2009-01")[0] == 4


@pytest.mark.parametrize("states", ["states_version", ""])
def test_local_months_and_those_without_a_version_are_compared_by_what_there_is(
    run_cli: RunCli, make_project: MakeProject, shelf: servers.Shelf, tmp_path: Path, states: str
) -> None:
    store = tmp_path / "store"
    for month in MONTHS:
        (store / month).mkdir(parents=True)
        (store / month / "a.csv").write_bytes(CSV)
    shelf.states_version = False
    shelf.headers.clear()
    paths = make_project(source=shelf.address("/{month}.csv") if states else "../store/{month}/*.csv")
    download(run_cli, paths)
    assert run_cli(paths.root, "upstream")[0] == 0
    shelf.files["/2009-02.csv"] = NEW_CSV
    (store / "2009-02" / "a.csv").write_bytes(CSV.replace(b"1", b"3"))  # of the same size
    (store / "2009-03" / "b.csv").write_bytes(CSV)
    code, printed = run_cli(paths.root, "upstream")
    assert code == 6
    if states:
        assert f"2009-02: 2009-02.csv: size {len(CSV)} -> {len(NEW_CSV)}\n" in printed
    else:
        assert "2009-02: a.csv: sha256 " in printed
        assert "2009-03: b.csv: new\n" in printed


def read_scores(root: Path, month: str) -> dict[int, float]:
    table = pq.read_table(root / f"data/predictions/month={month}", columns=["row", "probability"], partitioning=None)
    return dict(zip(table["row"].to_pylist(), table["probability"].to_pylist(), strict=True))


def test_a_month_is_fetched_again_and_its_restatement_reported_after_a_kill(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    story, store, month = stories.copy_first(tmp_path_factory, tmp_path / "project"), tmp_path / "store", MONTHS[-1]
    shutil.copytree(story.root / "data/raw", store)
    pattern = "../store/{month}/yellow_tripdata_{month}.parquet"
    workbench.change_settings(Paths(story.root), source=pattern, notify="cat >> ../events.jsonl")
    story.repro("moved")
    assert "score" not in story.repros["moved"].stages  # the same bytes
    asked = story.run("tipline", "upstream")
    assert (asked.returncode, asked.stdout) == (0, "3 months: 0 published again, 0 not known\n")
    published, old = store / month / f"yellow_tripdata_{month}.parquet", read_scores(story.root, month)
    trips = pq.read_table(published)
    name = next(name for name in trips.column_names if name.lower().startswith("fare"))
    fares = [fare + 20 if row < 50 else fare for row, fare in enumerate(trips[name].to_pylist())]
    fares = trips.set_column(
        trips.column_names.index(name), trips.schema.field(name), pa.array(fares, trips.schema.field(name).type)
    )
    pq.write_table(pa.concat_tables([fares, trips.slice(0, 7)]), published)
    assert story.run("tipline", "upstream").returncode == 6
    manifest = story.root / f"data/raw/{month}.json"
    before = manifest.stat().st_mtime_ns
    with workbench.running("tipline", "upstream", "--fetch", folder=story.root) as process:
        workbench.wait_for(lambda: manifest.exists() and manifest.stat().st_mtime_ns != before)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = story.run("tipline", "upstream", "--fetch", "--threshold", "0.6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 months: 0 published again" in done.stdout
    assert len(re.findall(r"Running stage 'prepare", done.stdout)) == 1
    new = read_scores(story.root, month)
    (path,) = (story.root / "reports/restatements").iterdir()
    report = read_json(path)
    pairs = [(old[row], new[row]) for row in old.keys() & new.keys()]
    assert len(pairs) == report["rows"]
    assert report["moved"] == sum(a != b for a, b in pairs) > 0
    assert report["crossed_up"] == sum(a <= 0.6 < b for a, b in pairs)
    assert report["crossed_down"] == sum(b <= 0.6 < a for a, b in pairs)
    assert report["largest_difference"] == max(abs(a - b) for a, b in pairs)
    assert (report["added"], report["removed"]) == (len(new) - len(pairs), len(old) - len(pairs)) == (7, 0)
    assert f"{month}: because of data; columns: extra, fare_amount, " in done.stdout
    assert not list((story.root / "data/.staging/restatement").iterdir())
    again = story.run("tipline", "upstream", "--fetch")
    assert (again.returncode, again.stdout) == (0, "3 months: 0 published again, 0 not known\n")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["month"]) for event in events][:1] == [("published", month)]


def test_scores_are_compared_by_identifiers_where_predictions_have_them(
    make_project: MakeProject, tmp_path: Path
) -> None:
    paths = make_project()
    old, new = [("a", 0.1), ("b", 0.2), ("c", 0.9)], [("c", 0.9), ("a", 0.7), ("d", 0.3)]
    locations = plan.Locations.resolve(workbench.load_settings(paths), paths)
    prepared = {"published": 1, "mapping": {"digest": 1}, "format": 1}
    for folder, scores, model in ((locations.predictions, new, "m"), (open_storage(tmp_path / "kept"), old, "n")):
        columns = [pa.array(values) for values in (range(3), *zip(*scores, strict=True))]
        columns[2] = columns[2].cast(pa.float32())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, ["row", "trip_id", "probability"]), sink)
        folder.write("month=2009-01/part-00000.parquet", sink.getvalue().to_pybytes())
        key = {"columns": {"row": "1"}, "model": model, "format": 1}
        folder.write(
            "month=2009-01/_manifest.json", json.dumps({"key": key, "parts": [{"name": "part-00000.parquet"}]}).encode()
        )
        folder.write(f"month=2009-01/{upstream.PREPARED}", json.dumps(prepared).encode())
    locations.trips.write("month=2009-01/_manifest.json", json.dumps(prepared).encode())
    report = upstream.compare_month(locations, open_storage(tmp_path / "kept"), "2009-01", 0.5)
    counts = [report[name] for name in ("rows", "moved", "crossed_up", "crossed_down", "added", "removed")]
    assert (counts, report["joined_by"]) == ([2, 1, 1, 0, 1, 1], ["trip_id"])
    assert report["because"] == "because of model (n -> m); columns: -"
