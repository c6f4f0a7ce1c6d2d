"""`tipline verify`: check that published predictions are what their manifests say."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tipline import files, formats
from tipline.config import PartialSettings
from tipline.errors import TiplineError, UsageError, format_count
from tipline.ingest.columns import PREPARED_FILE
from tipline.paths import Paths, month_name
from tipline.scoring import plan
from tipline.storage import Storage, open_storage


def run(
    settings: PartialSettings, paths: Paths, months: Sequence[str] = (), trips: str = "", predictions: str = ""
) -> Iterator[str]:
    """Check months, by default all; yield a line about each, then its problems. Raises at the end if there are any."""
    locations = plan.Locations.resolve(settings, paths, trips, predictions)
    published = [name.removeprefix("month=") for name in locations.predictions.list_folders() if "month=" in name]
    requested = list(dict.fromkeys(months or settings.months or published))
    missing, wrong = [month for month in requested if month not in published], []
    if missing == requested or (months and missing):
        what = f"There are no predictions of {', '.join(missing) or 'any month'}."
        todo = "Score first (dvc repro score), or name the location: --predictions"
        raise (UsageError if months else TiplineError)(what, locations.predictions.address(), todo)
    for month in requested:
        if month in missing:
            yield f"{month}: not scored yet"
            continue
        summary, problems = check_month(locations, month)
        yield f"{month}: {format_count(len(problems), 'problem') if problems else summary}"
        yield from (f"  {line}" for problem in problems for line in str(problem).splitlines())
        wrong += [month] * bool(problems)
    if wrong:
        what = f"The predictions of {format_count(len(wrong), 'month')} are not what their manifests say."
        raise TiplineError(what, ", ".join(wrong), "The problems and what to do about each are printed above.")


def check_month(locations: plan.Locations, month: str) -> tuple[str, list[TiplineError]]:
    predictions, folder, summary = locations.predictions, month_name(month), ""
    data, where = predictions.read(f"{folder}/{files.MANIFEST}"), predictions.address(folder)
    todo = f"Remove {where} and score the month again: dvc repro score"
    if manifest := read_manifest(data, month):
        found = list_differences(predictions, folder, manifest["parts"])
        problems = [TiplineError(what, f"{where}/{name}", todo) for name, what in sorted(found.items())]
        try:
            check_prepared(locations, month, manifest, todo)
        except TiplineError as error:
            problems.append(error)
        summary = f"{format_count(manifest['rows'], 'row')}, {format_count(len(manifest['parts']), 'part')}, whole"
    else:
        what = "This is not a manifest of this month and version of tipline whose numbers add up."
        problems = [TiplineError(what, f"{where}/{files.MANIFEST}", todo)]
    if problems and predictions.read(f"{folder}/{files.MANIFEST}") != data:
        what = "The month was published again while it was checked."
        problems = [TiplineError(what, where, "Run the command again.")]
    return summary, problems


def read_manifest(data: bytes | None, month: str) -> dict[str, Any] | None:
    """Read a manifest; return None unless it is of this month and format and its numbers of rows agree."""
    try:
        manifest: dict[str, Any] = json.loads(data or b"")
        rows = {manifest["rows"], manifest["counts"]["rows"], sum(part["rows"] for part in manifest["parts"])}
        kind = (manifest["month"], manifest["key"]["format"], len(rows))
    except (LookupError, TypeError, ValueError):
        return None
    return manifest if kind == (month, formats.PREDICTIONS, 1) else None


def list_differences(predictions: Storage, folder: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found, listed = {}, {part["name"]: part for part in parts}
    for name, part in listed.items():
        data = predictions.read(f"{folder}/{name}")
        if data is None:
            found[name] = "The part is missing."
        elif (len(data), files.hash_bytes(data)) != (part["bytes"], part["sha256"]):
            sizes = f"it has {len(data):,} of {part['bytes']:,} bytes"
            found[name] = f"The part's sha256 is not the one in the manifest; {sizes}."
    present = {*predictions.list_sizes(folder), *open_storage(predictions.address(folder)).list_folders()}
    for name in present - {files.MANIFEST, *listed}:
        if not name.startswith("."):
            found[name] = "The manifest does not list this; readers of the folder would use it."
    return found


def check_prepared(locations: plan.Locations, month: str, manifest: Mapping[str, Any], todo: str) -> None:
    trips, folder, key = locations.trips, month_name(month), manifest["key"]
    prepared = plan.read_prepared(trips, month)
    plan.check_scored(prepared, key, trips.address(folder))
    if trips.hash_file(file := f"{folder}/{PREPARED_FILE}") != prepared["trips"]["sha256"]:
        what, todo = "The prepared file is not the one that its manifest describes.", f"tipline prepare {month}"
        raise TiplineError(what, trips.address(file), f"Prepare the month again: {todo}")
    blocks = [(block.name, block.rows) for block in plan.list_blocks(locations, month, key)]
    if blocks != [(part["name"], part["rows"]) for part in manifest["parts"]]:
        what = "The parts of the manifest do not have the rows of the prepared month."
        raise TiplineError(what, locations.predictions.address(f"{folder}/{files.MANIFEST}"), todo)
