"""monitor: measure how good the scores of each month were, from what scoring counted."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from tipline import files, formats
from tipline.config import Settings
from tipline.errors import TiplineError
from tipline.ingest import losses
from tipline.monitoring import page, plots, verdict
from tipline.monitoring.counts import Counts
from tipline.paths import Paths, month_folder

log = logging.getLogger(__name__)

TODO = "Run: dvc repro score"
PREPARED_COLUMNS = [
    *("month", "era", "schema", "rows_in", "rows_out", "quarantined", "quarantined_by_reason", "filled"),
    *("out_of_range", "outside_month", "unknown_aliases", "unknown_columns"),
]


def run(settings: Settings, paths: Paths) -> None:
    """Write the tables, the picture and the page of reports/monitoring/, and print the verdicts."""
    spec = files.read_json(paths.champion / "model.json", "Run: dvc repro register")
    names = sorted(settings.months)
    months = [
        {"month": name, "role": settings.sample.months.get(name, ""), **verdict.summarize_month(counts, spec)}
        for name, counts in read_counts(paths, names).items()
    ]
    manifests = [files.read_json(paths.prepared(n) / files.MANIFEST, f"Run: dvc repro prepare@{n}") for n in names]
    unusual = losses.find_unusual(manifests)
    for month in months:
        month["unusual"] = unusual.get(month["month"], [])
    with files.replace_folder(paths.monitoring, paths.staging / "reports") as folder:
        files.write_json(folder / "months.json", months)
        flat = [{name: month[name] for name in month if name not in verdict.NESTED} for month in months]
        files.write_csv(folder / "months.csv", flat)
        files.write_csv(folder / "prepared.csv", [format_preparation(manifest) for manifest in manifests])
        plots.plot_monitoring(folder / "monitoring.png", months)
        page.write_page(folder / "index.html", months, folder / "monitoring.png")
    for month in months:
        log.info("%s: %s: %s", month["month"], month["verdict"], month["reason"])


def read_counts(paths: Paths, months: Iterable[str]) -> dict[str, Counts]:
    """Read the counts of months that the champion scored; those of another model would not match its reference."""
    digest, counts = files.read_json(paths.champion_ref, "Run: dvc repro register")["digest"], {}
    for month in months:
        path = month_folder(paths.predictions, month) / files.MANIFEST
        manifest = files.read_json(path, TODO)
        if (manifest["key"]["model"], manifest["key"]["format"]) != (digest, formats.PREDICTIONS):
            what = f"{month} was not scored by the champion (digest {digest[:12]}) and this version of tipline."
            raise TiplineError(what, str(path), TODO)
        counts[month] = Counts.from_json(manifest["counts"])
    return counts


def format_preparation(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a month's row of prepared.csv; several counts in one cell are `name: count; ...`."""
    row = {name: manifest[name] for name in PREPARED_COLUMNS}
    for name, value in row.items():
        if isinstance(value, dict):
            row[name] = "; ".join(f"{key}: {count}" for key, count in value.items())
        elif isinstance(value, list):
            row[name] = "; ".join(value)
    return row
