"""monitor: what the scores of each month were worth, from what scoring counted in passing."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

from tipline import files, plots
from tipline.layout import month_folder
from tipline.metrics import Counts

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write the table (CSV and json) and the picture of reports/monitoring/."""
    baseline = files.read_json(layout.champion / "model.json", "Run: dvc repro register")["baseline"]
    months = [of_month(layout, month, baseline, settings.sample.months.get(month)) for month in sorted(settings.months)]
    with files.replacing_folder(layout.monitoring, layout.staging / "reports") as folder:
        files.write_json(folder / "months.json", months)
        with (folder / "months.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(months[0]))
            writer.writeheader()
            writer.writerows(months)
        plots.monitoring(folder / "monitoring.png", months)
    for line in table(months):
        log.info("%s", line)


def of_month(layout: Layout, month: str, baseline: dict[str, Any], role: str | None) -> dict[str, Any]:
    """The figures of one month, with the role that it has in training."""
    receipt = files.read_json(month_folder(layout.predictions, month) / files.RECEIPT, "Run: dvc repro score")
    return {"month": month, "role": role or "", **Counts.from_json(receipt["counts"]).figures(baseline)}


def table(months: list[dict[str, Any]]) -> list[str]:
    """The months as lines of text."""
    lines = [
        f"{'month':8} {'role':8} {'rows':>12} {'mean p':>8} {'tip rate':>8} {'log-loss':>8} {'skill':>8} {'AUC':>8}"
    ]
    for month in months:
        figures = (month[name] for name in ("mean_probability", "tip_rate", "log_loss", "skill", "auc"))
        cells = " ".join(f"{value:8.4f}" if value is not None else f"{'-':>8}" for value in figures)
        lines.append(f"{month['month']:8} {month['role']:8} {month['rows']:12,} {cells}")
    return lines
