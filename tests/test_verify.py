"""Predictions that are not what their manifests say are found out, each fault by itself."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from tests import servers, workbench
from tests.test_score import another_champion
from tipline import cluster, files
from tipline.commands import verify
from tipline.monitoring.counts import BANDS, Counts, Sums
from tipline.scoring import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tipline.paths import Paths

    Run = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
MONTH = "2009-02"
WHOLE = "5,000 rows, 3 parts, whole"


@pytest.fixture
def done(request: pytest.FixtureRequest) -> Paths:
    """The session's scored project, to read from."""
    return workbench.scored(request)


@pytest.fixture
def project(done: Paths, tmp_path: Path) -> Paths:
    """A scored project of the test's own."""
    return workbench.copy_project(done, tmp_path)


def folder(paths: Paths) -> Path:
    return paths.predictions / f"month={MONTH}"


def part(paths: Paths) -> Path:
    return folder(paths) / "part-00001.parquet"


def manifest(paths: Paths) -> Any:
    return workbench.read_json(folder(paths) / files.MANIFEST)


def told(paths: Paths, **changed: Any) -> None:
    """Change what a month's manifest says."""
    files.write_json(folder(paths) / files.MANIFEST, manifest(paths) | changed)


def part_told(paths: Paths, **changed: Any) -> None:
    """Change what a month's manifest says of its second part."""
    first, second, *others = manifest(paths)["parts"]
    told(paths, parts=[first, second | changed, *others])


def rewritten(paths: Paths, table: pa.Table) -> None:
    """Write another part in place of one, and its digest into the manifest."""
    pq.write_table(table, part(paths))
    part_told(paths, **files.describe_file(part(paths)))


def column(table: pa.Table, name: str, change: Callable[[Any], None]) -> pa.Table:
    """A table with some values of a column changed in place."""
    values = table[name].to_numpy().copy()
    change(values)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def found(paths: Paths, run_cli: Run, *arguments: str) -> list[str]:
    """What is said of the damaged month; the others are whole."""
    code, printed = run_cli(paths.root, "verify", *arguments)
    lines = printed.splitlines()
    starts = [place for place, line in enumerate(lines) if line[:1] == "2"] + [
        lines.index(next(line for line in lines if line.startswith("tipline verify: ")))
    ]
    blocks = {lines[start][:7]: lines[start:end] for start, end in pairwise(starts)}
    mine = blocks.pop(MONTH)
    assert code == 1, printed
    assert f"The predictions of 1 of {len(blocks) + 1} months are not what their manifests say." in printed
    assert all(others[0].endswith(WHOLE) for others in blocks.values())
    assert "defect" not in printed
    assert len(mine) == 1 + 3 * int(mine[0].split()[1])
    return [line.strip() for line in mine[1:]]


def only(lines: list[str], what: str, where: Path | str) -> None:
    """One fault, with these words, at this place."""
    assert len(lines) == 3, lines
    assert what in lines[0]
    assert lines[1] == f"where: {where}"
    assert lines[2].startswith("to do: ")


def test_what_score_published_is_whole(done: Paths, run_cli: Run) -> None:
    before = workbench.read_tree(done.root / "data")
    code, printed = run_cli(done.root, "verify")
    assert code == 0
    assert printed.splitlines() == [f"{month}: {WHOLE}" for month in workbench.MONTHS]
    assert workbench.read_tree(done.root / "data") == before


def test_only_the_months_that_are_named_are_looked_at(done: Paths, run_cli: Run) -> None:
    code, printed = run_cli(done.root, "verify", "2024-01", "2009-01")
    assert code == 0
    assert printed.splitlines() == [f"{month}: {WHOLE}" for month in ("2024-01", "2009-01")]


def test_months_that_are_not_scored_are_no_fault_unless_they_are_named(project: Paths, run_cli: Run) -> None:
    shutil.rmtree(folder(project))
    code, printed = run_cli(project.root, "verify")
    assert code == 0
    assert f"{MONTH}: not scored yet" in printed
    code, printed = run_cli(project.root, "verify", MONTH)
    assert code == 2
    assert f"There are no predictions of {MONTH}." in printed


def test_nothing_to_verify_is_a_failure(project: Paths, run_cli: Run, tmp_path: Path) -> None:
    code, printed = run_cli(project.root, "verify", "--predictions", str(tmp_path / "nowhere"))
    assert code == 1
    assert "There are no predictions of any month" in printed


@pytest.mark.parametrize("place", [0.01, 0.5, 0.999])
def test_a_flipped_bit_is_found(project: Paths, run_cli: Run, place: float) -> None:
    flip(part(project), int(part(project).stat().st_size * place))
    only(found(project, run_cli), "sha256 is not the one in the manifest", part(project))


def test_what_to_do_about_it_helps(
    project: Paths, run_cli: Run, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(part(project), 1000)
    advice = found(project, run_cli)[2]
    assert advice == f"to do: Remove {folder(project)} and score the month again: dvc repro score"
    shutil.rmtree(folder(project))
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    workbench.run(project, "score")
    code, printed = run_cli(project.root, "verify")
    assert code == 0, printed


def test_a_part_that_is_cut_is_found(project: Paths, run_cli: Run) -> None:
    part(project).write_bytes(part(project).read_bytes()[:-1])
    size = manifest(project)["parts"][1]["bytes"]
    only(found(project, run_cli), f"has {size - 1:,} bytes, the manifest says {size:,}", part(project))


def test_a_part_that_is_missing_is_found(project: Paths, run_cli: Run) -> None:
    part(project).unlink()
    only(found(project, run_cli), "The part is not there", part(project))


@pytest.mark.parametrize("name", ["part-00003.parquet", "part-00000 (copy).parquet", "_old", "more"])
def test_what_was_added_is_found(project: Paths, run_cli: Run, name: str) -> None:
    added = folder(project) / name
    if name == "more":
        added.mkdir()
        shutil.copy(part(project), added)
    else:
        shutil.copy(part(project), added)
    only(found(project, run_cli), "The manifest does not name this", added)


def test_hidden_files_are_nobodys_business(project: Paths, run_cli: Run) -> None:
    (folder(project) / ".DS_Store").write_text("a desktop's")
    assert run_cli(project.root, "verify")[0] == 0


def test_a_part_that_the_receipt_names_as_well_is_found(project: Paths, run_cli: Run) -> None:
    shutil.copy(part(project), folder(project) / "part-00003.parquet")
    parts = manifest(project)["parts"]
    rows = 5000 + parts[1]["rows"]
    counts = manifest(project)["counts"] | {"rows": rows}
    told(project, parts=[*parts, parts[1] | {"name": "part-00003.parquet"}], rows=rows, counts=counts)
    lines = found(project, run_cli)
    assert "The manifest names 4 parts, the prepared month has 3 row groups." in lines
    assert "counts are not those of its rows: probability" in " ".join(lines)


def test_a_part_that_is_named_twice_is_found(project: Paths, run_cli: Run) -> None:
    parts = manifest(project)["parts"]
    told(project, parts=[*parts, parts[1]])
    lines = found(project, run_cli)
    assert "The manifest names a part twice." in lines
    assert "Row numbers of this part are in an earlier one, too." in lines


def test_a_row_number_that_was_changed_is_found_behind_a_right_digest(project: Paths, run_cli: Run) -> None:
    def change(rows: Any) -> None:
        rows[7] += 5000

    table = pq.read_table(part(project))
    rewritten(project, column(table, "row", change))
    row = table["row"][7].as_py()
    what = f"1 row number is not that of the prepared month, the first {row + 5000:,} instead of {row:,}."
    only(found(project, run_cli), what, part(project))


def test_rows_that_were_swapped_are_found(project: Paths, run_cli: Run) -> None:
    table = pq.read_table(part(project))
    order = np.arange(len(table))
    order[[3, 9]] = order[[9, 3]]
    rewritten(project, table.take(pa.array(order)))
    only(found(project, run_cli), "2 row numbers are not those of the prepared month", part(project))


def test_a_row_that_is_lost_is_found(project: Paths, run_cli: Run) -> None:
    table = pq.read_table(part(project))
    rewritten(project, table.slice(1))
    only(found(project, run_cli), f"has {len(table) - 1:,} rows, the manifest says {len(table):,}", part(project))
    part_told(project, rows=len(table) - 1)
    lines = found(project, run_cli)
    assert "The manifest has 5,000 rows, its counts 5,000, its parts 4,999." in lines
    assert f"The part has {len(table) - 1:,} rows, the prepared month {len(table):,}." in lines


def test_a_row_number_that_is_there_twice_in_prepared_month_and_predictions_is_found(
    project: Paths, run_cli: Run
) -> None:
    def change(rows: Any) -> None:
        rows[8] = rows[7]

    def rewrite(path: Path, of_group: int) -> None:
        groups = pq.ParquetFile(path)
        tables = [groups.read_row_group(group) for group in range(groups.num_row_groups)]
        tables[of_group] = column(tables[of_group], "row", change)
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)

    rewrite(project.prepared_file(MONTH), 1)
    rewrite(part(project), 0)
    prepared = workbench.read_json(project.prepared(MONTH) / files.MANIFEST)
    stated = files.describe_file(project.prepared_file(MONTH))
    files.write_json(project.prepared(MONTH) / files.MANIFEST, prepared | {"trips": prepared["trips"] | stated})
    told(project, key=manifest(project)["key"] | {"trips": stated["sha256"]})
    part_told(project, **files.describe_file(part(project)))
    only(found(project, run_cli), "Row numbers are there twice, or not in order.", part(project))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001])
def test_what_is_no_probability_is_found(project: Paths, run_cli: Run, value: float) -> None:
    def change(scores: Any) -> None:
        scores[-1] = value

    rewritten(project, column(pq.read_table(part(project)), "tip_probability", change))
    only(found(project, run_cli), "Not all of its values are probabilities.", part(project))


def test_another_probability_is_found_by_the_counts(project: Paths, run_cli: Run) -> None:
    def change(scores: Any) -> None:
        scores[100] = 1 - scores[100]

    rewritten(project, column(pq.read_table(part(project)), "tip_probability", change))
    what = "The manifest's counts are not those of its rows: probability, bands, group "
    only(found(project, run_cli), what, folder(project) / files.MANIFEST)


def test_other_columns_are_found(project: Paths, run_cli: Run) -> None:
    table = pq.read_table(part(project))
    rewritten(project, table.cast(pa.schema([("row", pa.int64()), ("tip_probability", pa.float64())])))
    only(found(project, run_cli), "The part has other columns: ", part(project))


def test_a_part_that_is_no_parquet_behind_a_right_digest_is_found(project: Paths, run_cli: Run) -> None:
    part(project).write_bytes(b"no Parquet")
    part_told(project, **files.describe_file(part(project)))
    only(found(project, run_cli), "The part is no Parquet file that can be read", part(project))


COUNTS = ["a band", "a tip", "a loss", "an expected tip", "the sum of probabilities", "a group", "a bin", "a day"]


def miscount(paths: Paths, what: str) -> str:
    """Change one of a manifest's counts; give what is to be said of it."""
    counts = manifest(paths)["counts"]
    groups = counts["days"]["14"]
    group = groups["credit"]
    if what == "a band":
        next(iter(counts["bands"].values()))[0] += 1
    elif what == "a tip":
        group[1] += 1
    elif what == "a loss":
        group[3] *= 1 + 1e-8
    elif what == "an expected tip":
        group[2] *= 1 + 1e-8
    elif what == "a bin":
        counts["histograms"]["fare_amount"]["counts"][3] += 1
    elif what == "a day":
        counts["days"]["31"] = {"credit": groups.pop("credit")}
    elif what == "the sum of probabilities":
        counts["probability"] *= 1 + 1e-8
    else:
        groups["barter"] = groups.pop("credit")
    told(paths, counts=counts)
    words = {
        "a band": "bands",
        "the sum of probabilities": "probability",
        "a group": "group barter, group credit",
        "a bin": "histogram of fare_amount",
    }
    return words.get(what, "group credit")


@pytest.mark.parametrize("what", COUNTS)
def test_a_count_that_was_changed_is_found(project: Paths, run_cli: Run, what: str) -> None:
    words = miscount(project, what)
    where = folder(project) / files.MANIFEST
    only(found(project, run_cli), f"The manifest's counts are not those of its rows: {words}.", where)


def test_sums_that_were_added_in_another_order_are_equal(project: Paths, run_cli: Run) -> None:
    counts = manifest(project)["counts"]
    counts["days"]["14"]["credit"][3] *= 1 + 1e-12
    told(project, counts=counts)
    assert run_cli(project.root, "verify")[0] == 0


def test_rows_that_do_not_add_up_are_found(project: Paths, run_cli: Run) -> None:
    told(project, rows=4999)
    what = "The manifest has 4,999 rows, its counts 5,000, its parts 5,000."
    only(found(project, run_cli), what, folder(project) / files.MANIFEST)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"month": "2009-02", "key": {}}', '{"parts": 1}', b"\xff"]
)
def test_a_receipt_that_is_missing_or_none_is_found(project: Paths, run_cli: Run, text: str | bytes | None) -> None:
    where = folder(project) / files.MANIFEST
    where.unlink()
    if text is not None:
        where.write_bytes(text if isinstance(text, bytes) else text.encode())
    what = "The month has no manifest." if text is None else "The manifest is none that tipline wrote"
    only(found(project, run_cli), what, where)


def test_a_receipt_of_another_month_is_found(project: Paths, run_cli: Run) -> None:
    told(project, month="2009-01")
    now = plan.FORMAT
    what = f"The manifest is of month 2009-01, format {now}; here it has to be 2009-02, {now}."
    only(found(project, run_cli), what, folder(project) / files.MANIFEST)


def test_a_prepared_month_whose_bytes_changed_is_found(project: Paths, run_cli: Run) -> None:
    path = project.prepared_file(MONTH)
    flip(path, path.read_bytes().rfind(b"parquet-cpp"))  # the writer's name: all rows are as they were
    lines = found(project, run_cli)
    only(lines, "The prepared month's sha256 is not the one that was scored: the file has changed.", path)
    assert lines[2] == f"to do: Make it again: dvc repro -f prepare@{MONTH}"


def test_a_month_that_was_prepared_anew_is_found(project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    workbench.small_row_groups(monkeypatch, 2600)
    workbench.prepare_again(project, MONTH)
    only(found(project, run_cli), "The month was prepared anew after it was scored", project.prepared(MONTH))


def test_a_month_that_is_not_prepared_cannot_be_joined(project: Paths, run_cli: Run) -> None:
    shutil.rmtree(project.prepared(MONTH))
    only(found(project, run_cli), "The month is not prepared", project.prepared(MONTH) / files.MANIFEST)


def test_parts_are_still_hashed_where_the_month_is_not_prepared(project: Paths, run_cli: Run) -> None:
    shutil.rmtree(project.prepared(MONTH))
    flip(part(project), 1000)
    assert "The part's sha256 is not the one in the manifest: its bytes have changed." in found(project, run_cli)


def test_every_fault_of_a_month_is_told(project: Paths, run_cli: Run) -> None:
    flip(part(project), 1000)
    (folder(project) / "part-00002.parquet").unlink()
    shutil.copy(part(project), folder(project) / "stray.parquet")
    lines = found(project, run_cli)
    where = [Path(line.removeprefix("where: ")).name for line in lines if line.startswith("where: ")]
    assert where == ["stray.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_predictions_of_another_model_are_no_fault(project: Paths, run_cli: Run) -> None:
    another_champion(project)
    code, printed = run_cli(project.root, "verify")
    assert code == 0
    words = f"{WHOLE}; made with another model (version 1): its losses are not counted again"
    assert printed.splitlines() == [f"{month}: {words}" for month in workbench.MONTHS]


def test_without_a_champion_what_needs_no_model_is_checked(project: Paths, run_cli: Run) -> None:
    shutil.rmtree(project.champion)
    assert run_cli(project.root, "verify")[0] == 0
    flip(part(project), 1000)
    code, printed = run_cli(project.root, "verify", MONTH)
    assert code == 1
    assert "sha256 is not the one in the manifest" in printed


@pytest.mark.parametrize("what", ["a band", "the sum of probabilities"])
def test_what_needs_no_model_is_counted_for_another_one_too(project: Paths, run_cli: Run, what: str) -> None:
    another_champion(project)
    words = miscount(project, what)
    code, printed = run_cli(project.root, "verify", MONTH)
    assert code == 1
    assert f"The manifest's counts are not those of its rows: {words}." in printed


def test_rows_of_unknown_target_are_in_a_band_and_in_no_group() -> None:
    bands = np.zeros(BANDS, np.int64)
    bands[3] = 5
    counts = Counts(days={"1": {"cash": Sums(4, 1, 0.5, 0.5)}})
    counts.bands[3] = 3, 1, 1
    assert verify.may_be(counts, bands)
    counts.bands[3] = 3, 1, 0
    assert not verify.may_be(counts, bands)
    counts.bands[3] = 3, 2, 0
    assert not verify.may_be(counts, bands)


def test_months_and_predictions_can_be_elsewhere(project: Paths, run_cli: Run, tmp_path: Path) -> None:
    project.predictions.rename(tmp_path / "scores")
    (project.root / "data" / "trips").rename(tmp_path / "prepared")
    elsewhere = ("--predictions", str(tmp_path / "scores"), "--trips", str(tmp_path / "prepared"))
    code, printed = run_cli(project.root, "verify", *elsewhere)
    assert code == 0, printed
    assert printed.count(WHOLE) == len(workbench.MONTHS)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Gateway]:
    """A real S3 server, whose address and keys the environment names."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    (tmp_path / "s3").mkdir()
    with servers.gateway(tmp_path / "s3") as server:
        told = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in (servers.KEYS | told | {"AWS_ENDPOINT_URL": f"http://{server.place}"}).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_verified_as_a_folder_is(project: Paths, run_cli: Run, gateway: servers.Gateway) -> None:
    for name in ("trips", "predictions"):
        for path, data in workbench.read_tree(project.root / "data" / name).items():
            gateway.put("tips", f"{name}/{path}", data)
    shutil.rmtree(project.root / "data")
    elsewhere = ("--predictions", "s3://tips/predictions", "--trips", "s3://tips/trips")
    code, printed = run_cli(project.root, "verify", *elsewhere)
    assert code == 0, printed
    assert printed.count(WHOLE) == len(workbench.MONTHS)
    gateway.put("tips", f"predictions/month={MONTH}/stray.parquet", b"0")
    lines = found(project, run_cli, *elsewhere)
    only(lines, "The manifest does not name this", f"s3://tips/predictions/month={MONTH}/stray.parquet")


def test_a_month_that_is_published_anew_meanwhile_is_told(
    project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = verify.check_part

    def publish(month: verify.Month, *arguments: Any) -> verify.Found:
        if month.month == MONTH:
            part(project).unlink(missing_ok=True)
            told(project, made=manifest(project)["made"] | {"version": 2})
        return check(month, *arguments)

    monkeypatch.setattr(verify, "check_part", publish)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    only(found(project, run_cli), "published anew while it was being checked", folder(project))


def test_a_month_is_begun_before_the_one_before_is_finished() -> None:
    events: list[str] = []

    def begun() -> Any:
        for name in "abc":
            events.append(f"begin {name}")
            yield name

    events.extend(f"finish {name}" for name in verify.ahead(begun()))
    assert events == ["begin a", "begin b", "finish a", "begin c", "finish b", "finish c"]


def test_json_of_a_receipt_is_read_as_it_is_written(done: Paths) -> None:
    value = json.loads((done.predictions / f"month={MONTH}" / files.MANIFEST).read_text())
    read = verify.Manifest.of(value)
    assert (read.key, read.rows, read.parts, read.version) == (value["key"], 5000, value["parts"], 1)
    assert read.key["format"] == plan.FORMAT
