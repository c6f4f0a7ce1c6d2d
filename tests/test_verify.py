"""`verify`: every way in which predictions are not what their manifests say is found, each by itself."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import servers, workbench
from tipline import files
from tipline.paths import Paths
from tipline.storage import Storage

Run = Callable[..., tuple[int, str]]
Damage = Callable[[Paths], object]
MONTH = "2009-02"
WHOLE = "5,000 rows, 3 parts, whole"
PART = "part-00001.parquet"
ODD = "This is not a manifest of this month and version of tipline whose numbers add up."


def get_file(paths: Paths, name: str = files.MANIFEST) -> Path:
    return paths.predictions / f"month={MONTH}" / name


def change_manifest(paths: Paths, **values: Any) -> None:
    files.write_json(get_file(paths), workbench.read_json(get_file(paths)) | values)


def list_parts(paths: Paths) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = workbench.read_json(get_file(paths))["parts"]
    return parts


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def move_row(paths: Paths) -> None:
    """Count a row in another part, so that only the prepared month tells."""
    first, second, *rest = list_parts(paths)
    change_manifest(paths, parts=[first | {"rows": 1701}, second | {"rows": 1699}, *rest])


def list_problems(paths: Paths, run_cli: Run, *arguments: str) -> list[str]:
    """List the lines about the damaged month; all other months have to be whole."""
    code, printed = run_cli(paths.root, "verify", *arguments)
    lines = printed.splitlines()
    starts = [index for index, line in enumerate(lines) if line[:1] == "2" or line.startswith("tipline verify: ")]
    blocks = {lines[start][:7]: lines[start:end] for start, end in pairwise(starts)}
    damaged = blocks.pop(MONTH)
    assert code == 1, printed
    assert "The predictions of 1 month are not what their manifests say." in printed
    assert all(block[0].endswith(WHOLE) for block in blocks.values())
    assert len(damaged) == 1 + 3 * int(damaged[0].split()[1])
    return [line.strip() for line in damaged[1:]]


def test_published_months_are_whole(scored_template: Paths, run_cli: Run) -> None:
    before = workbench.read_tree(scored_template.root / "data")
    code, printed = run_cli(scored_template.root, "verify")
    assert (code, printed.splitlines()) == (0, [f"{month}: {WHOLE}" for month in workbench.MONTHS])
    code, printed = run_cli(scored_template.root, "verify", "2024-01", "2009-01")
    assert (code, printed.splitlines()) == (0, [f"{month}: {WHOLE}" for month in ("2024-01", "2009-01")])
    assert workbench.read_tree(scored_template.root / "data") == before


def test_a_month_without_predictions_is_an_error_only_if_requested(scored_project: Paths, run_cli: Run) -> None:
    shutil.rmtree(get_file(scored_project).parent)
    (scored_project.predictions / "month=2009-01" / ".DS_Store").write_text("ignored")
    code, printed = run_cli(scored_project.root, "verify")
    assert code == 0
    assert f"{MONTH}: not scored yet" in printed
    code, printed = run_cli(scored_project.root, "verify", MONTH)
    assert code == 2
    assert f"There are no predictions of {MONTH}." in printed
    code, printed = run_cli(scored_project.root, "verify", "--predictions", str(scored_project.root / "nowhere"))
    assert code == 1
    assert f"There are no predictions of {', '.join(workbench.MONTHS)}." in printed


def test_neither_model_nor_valid_settings_are_needed(scored_project: Paths, run_cli: Run) -> None:
    shutil.rmtree(scored_project.root / "models")
    for text, months in (("months: ['2009-01', 2009-13]\n", ["2009-01"]), ("months: [", workbench.MONTHS)):
        scored_project.params.write_text(text)
        code, printed = run_cli(scored_project.root, "verify")
        assert (code, printed.splitlines()) == (0, [f"{month}: {WHOLE}" for month in months])


@pytest.mark.parametrize(
    ("damage", "message", "file"),
    [
        (lambda paths: flip_bit(get_file(paths, PART), 4), "sha256 is not the one in the manifest", PART),
        (lambda paths: get_file(paths, PART).write_bytes(b""), "has 0 of ", PART),
        (lambda paths: get_file(paths, PART).unlink(), "The part is missing.", PART),
        (move_row, "do not have the rows of the prepared month", files.MANIFEST),
        (lambda paths: get_file(paths, "year=9").mkdir(), "The manifest does not list this", "year=9"),
        (lambda paths: change_manifest(paths, rows=4999), ODD, files.MANIFEST),
        (lambda paths: change_manifest(paths, key={"trips": "", "format": 1}), ODD, files.MANIFEST),
        (lambda paths: change_manifest(paths, month="2009-01"), ODD, files.MANIFEST),
        (lambda paths: get_file(paths).unlink(), ODD, files.MANIFEST),
        (lambda paths: get_file(paths).write_bytes(b"\xff"), ODD, files.MANIFEST),
    ],
)
def test_damage_is_found(scored_project: Paths, run_cli: Run, damage: Damage, message: str, file: str) -> None:
    damage(scored_project)
    problems = list_problems(scored_project, run_cli)
    index = next(index for index, line in enumerate(problems) if message in line)
    assert problems[index + 1] == f"where: {get_file(scored_project, file)}"
    folder = get_file(scored_project).parent
    assert problems[index + 2] == f"to do: Remove {folder} and score the month again: dvc repro score"


def test_every_problem_of_a_month_is_printed(
    scored_project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scored_project.prepared_file(MONTH)
    flip_bit(path, path.read_bytes().rfind(b"parquet-cpp"))  # the writer's name: all rows are as they were
    assert list_problems(scored_project, run_cli) == [
        "The prepared file is not the one that its manifest describes.",
        f"where: {path}",
        f"to do: Prepare the month again: tipline prepare {MONTH}",
    ]
    workbench.small_row_groups(monkeypatch, 2600)
    workbench.prepare_again(scored_project, MONTH)
    problems = list_problems(scored_project, run_cli)
    assert "The month was prepared again after it was scored" in problems[0]
    assert problems[1] == f"where: {scored_project.prepared(MONTH)}"
    # Parts are checked without the prepared month, too.
    shutil.rmtree(scored_project.prepared(MONTH))
    assert "The month is not prepared" in list_problems(scored_project, run_cli)[0]
    flip_bit(get_file(scored_project, PART), 1000)
    get_file(scored_project, "part-00002.parquet").unlink()
    get_file(scored_project, "stray.parquet").touch()
    places = [line for line in list_problems(scored_project, run_cli) if line.startswith("where: ")]
    assert [Path(place).name for place in places] == [PART, "part-00002.parquet", "stray.parquet", files.MANIFEST]


def test_a_month_that_is_published_while_it_is_checked_is_not_damaged(
    scored_project: Paths, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Storage.read

    def publish(storage: Storage, name: str) -> bytes | None:
        if name == f"month={MONTH}/{PART}":
            change_manifest(scored_project, made={"version": 2})
            return b"other"
        return read(storage, name)

    monkeypatch.setattr(Storage, "read", publish)
    problems = list_problems(scored_project, run_cli)
    assert (problems[0], len(problems)) == ("The month was published again while it was checked.", 3)


def test_buckets_are_verified(
    scored_project: Paths, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scored_project.root / "data").rename(tmp_path / "data")
    with servers.object_stores(tmp_path) as stores:
        store = stores["s3"]
        store.connect(monkeypatch)
        for path, data in workbench.read_tree(tmp_path / "data").items():
            store.put("tips", path, data)
        locations = ("--predictions", "s3://tips/predictions", "--trips", "s3://tips/trips")
        code, printed = run_cli(scored_project.root, "verify", *locations)
        assert (code, printed.count(WHOLE)) == (0, len(workbench.MONTHS)), printed
        store.put("tips", f"predictions/month={MONTH}/stray.parquet", b"0")
        problems = list_problems(scored_project, run_cli, *locations)
        assert problems[1] == f"where: s3://tips/predictions/month={MONTH}/stray.parquet"
        servers.forget_stores()
