"""monitor: what the scores of each month were worth, from what scoring counted in passing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import TiplineError
from tipline.monitoring import page, plots, verdict
from tipline.monitoring.counts import Counts
from tipline.paths import month_folder

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

AGAIN = "Run: dvc repro score"

# Of a prepared month's manifest, what is shown of all months side by side.
MANIFEST_COLUMNS = (
    "month",
    "era",
    "schema",
    "rows_in",
    "rows_out",
    "quarantined",
    "quarantined_by_reason",
    "filled",
    "out_of_range",
    "outside_month",
    "unknown_aliases",
    "unknown_columns",
)
WORDS = {
    "quarantined_by_reason": "rows set apart",
    "unknown_aliases": "aliases that the schema does not know",
    "unknown_columns": "columns that the schema does not know",
}


def run(settings: Settings, paths: Paths) -> None:
    """Write the tables (CSV and json), the picture and the page of reports/monitoring/."""
    spec = files.read_json(paths.champion / "model.json", "Run: dvc repro register")
    months = [of_month(paths, month, spec, settings.sample.months.get(month)) for month in sorted(settings.months)]
    with files.replace_folder(paths.monitoring, paths.staging / "reports") as folder:
        files.write_json(folder / "months.json", months)
        cells = [{name: month[name] for name in month if name not in verdict.NESTED} for month in months]
        files.write_csv(folder / "months.csv", cells)
        plots.plot_monitoring(folder / "monitoring.png", months)
        page.write_page(folder / "index.html", months)
        manifests = [of_preparation(paths, month) for month in sorted(settings.months)]
        files.write_csv(folder / "prepared.csv", manifests)
    for line in [*table(months), *odd(manifests)]:
        log.info("%s", line)


def of_month(paths: Paths, month: str, spec: dict[str, Any], role: str | None) -> dict[str, Any]:
    """The figures of one month, with the role that it has in training.

    Raises
    ------
    TiplineError
        Where it is not scored, or was by another tipline.
    """
    path = month_folder(paths.predictions, month) / files.MANIFEST
    manifest = files.read_json(path, AGAIN)
    try:
        counts = Counts.from_json(manifest["counts"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TiplineError("This manifest has no counts that this tipline can read.", str(path), AGAIN) from error
    return {"month": month, "role": role or "", **verdict.summarize_month(counts, spec)}


def of_preparation(paths: Paths, month: str) -> dict[str, Any]:
    """What preparing a month met, from its manifest; counts by name as `name: count; ...`."""
    manifest = files.read_json(paths.prepared(month) / files.MANIFEST, f"Run: dvc repro prepare@{month}")
    values = {name: manifest[name] for name in MANIFEST_COLUMNS}
    return {name: listed(value) if isinstance(value, (dict, list)) else value for name, value in values.items()}


def listed(value: dict[str, int] | list[str]) -> str:
    """Several counts or names in one cell."""
    return "; ".join([f"{name}: {value[name]}" for name in value] if isinstance(value, dict) else value)


def odd(manifests: list[dict[str, Any]]) -> list[str]:
    """Months in whose preparation something came up that a person should look at."""
    return [
        f"{manifest['month']}: {WORDS[name]}: {manifest[name]}"
        for manifest in manifests
        for name in WORDS
        if manifest[name]
    ]


def table(months: list[dict[str, Any]]) -> list[str]:
    """The months as lines of text; below them the reasons of all verdicts but `keep`."""
    heads = (f"{name:>8}" for name in ("mean p", "tip rate", "log-loss", "skill", "AUC"))
    lines = [f"{'month':8} {'role':8} {'rows':>12} {' '.join(heads)}  verdict"]
    for month in months:
        figures = (month[name] for name in ("mean_probability", "tip_rate", "log_loss", "skill", "auc"))
        cells = " ".join(f"{value:8.4f}" if value is not None else f"{'-':>8}" for value in figures)
        lines.append(f"{month['month']:8} {month['role']:8} {month['rows']:12,} {cells}  {month['verdict']}")
    others = [month for month in months if month["verdict"] != verdict.KEEP]
    return lines + [f"{month['month']}: {month['verdict']}: {month['reason']}" for month in others]
