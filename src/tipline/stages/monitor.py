"""monitor: measure how good the scores of each month were, from what scoring counted."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tipline import files, formats
from tipline.config import Settings
from tipline.errors import TiplineError
from tipline.ingest import losses
from tipline.monitoring import page, plots, verdict
from tipline.monitoring.counts import Counts
from tipline.paths import Paths, month_folder
from tipline.scoring import plan

log = logging.getLogger(__name__)

TODO = "Run: dvc repro score"
PRINTED_MONTHS = 12  # at most; the page has all
PREPARED_COLUMNS = [
    *("month", "era", "schema", "rows_in", "rows_out", "quarantined", "quarantined_by_reason", "filled"),
    *("out_of_range", "outside_month", "unknown_aliases", "unknown_columns", "labels"),
]


def run(settings: Settings, paths: Paths) -> None:
    """Write the tables, the picture and the page of reports/monitoring/, and print the verdicts."""
    spec = files.read_json(paths.champion / "model.json", "Run: dvc repro register")
    names = sorted(settings.months)
    months = [
        {"month": name, "role": settings.sample.months.get(name, ""), **verdict.summarize_month(counts, spec)}
        | {"made_from": key}
        for name, (key, counts) in read_counts(settings, paths, names, spec).items()
    ]
    manifests = [files.read_json(paths.prepared(n) / files.MANIFEST, "Run: dvc repro prepare") for n in names]
    unusual = losses.find_unusual(manifests)
    add_filled_values(months, manifests)
    for month in months:
        month["unusual"] = unusual.get(month["month"], [])
    before = {one["month"]: one for one in files.try_read_json(paths.monitoring / "months.json") or ()}
    with files.replace_folder(paths.monitoring, paths.staging / "reports") as folder:
        files.write_json(folder / "months.json", months)
        flat = [{name: month[name] for name in month if name not in verdict.NESTED} for month in months]
        files.write_csv(folder / "months.csv", flat)
        files.write_csv(folder / "prepared.csv", [format_preparation(manifest) for manifest in manifests])
        plots.plot_monitoring(folder / "monitoring.png", months)
        page.write_page(folder / "index.html", months, folder / "monitoring.png")
    changed = [month for month in months if describe_month(month) != describe_month(before.get(month["month"]))]
    for month in changed[-PRINTED_MONTHS:]:
        log.info(describe_month(month))
    log.info("%s. See %s", page.count_verdicts(months), (paths.monitoring / "index.html").relative_to(paths.root))


def describe_month(month: Mapping[str, Any] | None) -> str:
    return f"{month['month']}: {month['verdict']}: {month['reason']}" if month else ""


def add_filled_values(months: Sequence[Mapping[str, Any]], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Add the values that `prepare` filled to the missing rates, of these months and of the months of training."""
    shares = [
        {name: rows / (manifest["rows_out"] or 1) for name, rows in manifest["filled"].items()}
        for manifest in manifests
    ]
    training = [one for month, one in zip(months, shares, strict=True) if month["role"] == "train"]
    for month, filled in zip(months, shares, strict=True):
        for name, drift in month["drift"]["features"].items() if month["drift"] else ():
            usual = sum(one.get(name, 0) for one in training) / max(len(training), 1)
            for key, share in (("missing_rate", filled.get(name, 0)), ("reference_missing_rate", usual)):
                drift[key] = share + (drift[key] or 0) if share else drift[key]


def read_counts(
    settings: Settings, paths: Paths, months: Iterable[str], spec: Mapping[str, Any]
) -> dict[str, tuple[str, Counts]]:
    """Return key digests and counts of months that the champion scored; count again where labels have changed."""
    digest = files.read_json(paths.champion_ref, "Run: dvc repro register")["digest"]
    locations = plan.Locations.resolve(settings, paths)
    found, stale, saved = dict[str, dict[str, Any]](), dict[str, dict[str, Any]](), dict[str, Any]()
    for month in months:
        path = month_folder(paths.predictions, month) / files.MANIFEST
        manifest = files.read_json(path, TODO)
        if (manifest["key"]["model"], manifest["key"]["format"]) != (digest, formats.PREDICTIONS):
            what = f"{month} was not scored by the champion (digest {digest[:12]}) and this version of tipline."
            raise TiplineError(what, str(path), TODO)
        prepared = plan.read_prepared(locations.trips, month)
        plan.check_scored(prepared, manifest["key"], str(path))
        counted = plan.compute_counted(prepared, spec)
        saved[month] = files.try_read_json(paths.counts(month)) or {}
        for one in (manifest, saved[month]):
            if (one.get("key"), one.get("counted")) == (manifest["key"], counted):
                found[month] = {name: one[name] for name in ("key", "counted", "counts")}
        if month not in found:
            stale[month] = {"key": manifest["key"], "counted": counted, "counts": manifest["counts"]}
    found |= recount_months(settings, locations, stale, spec)
    for path in paths.counts("").parent.glob("*.json"):
        if path.stem not in found:
            path.unlink()
    for month in months:
        if saved[month] != found[month]:
            files.write_json(paths.counts(month), found[month])
    return {month: (files.hash_json(found[month]["key"]), Counts.from_json(found[month]["counts"])) for month in months}


def recount_months(
    settings: Settings, locations: plan.Locations, stale: Mapping[str, Mapping[str, Any]], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Count months again on the workers, from the stored scores and the prepared months; nothing is scored."""
    blocks = [block for month in stale for block in plan.list_blocks(locations, month, stale[month]["key"])]
    results = dict[plan.Block, Counts]()
    if blocks:
        from tipline import cluster  # noqa: PLC0415 (half a second)
        from tipline.scoring import worker  # noqa: PLC0415

        log.info("counting again, because labels, groups or times have changed: %s", ", ".join(stale))
        with cluster.connect_client(settings.cluster.n_workers, settings.cluster.factory) as client:
            for block, result in cluster.run_tasks(client, partial(worker.recount_block, spec=spec), blocks):
                if isinstance(result, Exception):
                    raise plan.explain_failure(block, result)
                results[block] = Counts.from_json(result)
    found = {}
    for month, one in stale.items():
        # In order: sums of floats depend on it.
        counts = Counts.merge(results[block] for block in blocks if block.month == month)
        found[month] = {**one, "counts": counts.to_json() | {"histograms": one["counts"]["histograms"]}}
    return found


def format_preparation(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a month's row of prepared.csv; several counts in one cell are `name: count; ...`."""
    row = {name: manifest.get(name, "") for name in PREPARED_COLUMNS}
    for name, value in row.items():
        if isinstance(value, dict):
            row[name] = "; ".join(f"{key}: {count}" for key, count in value.items())
        elif isinstance(value, list):
            row[name] = "; ".join(value)
    return row
