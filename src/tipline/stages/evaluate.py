"""evaluate: challenger and champion on the `test` months, beside majority and baseline; the gate's verdict."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import files
from tipline.evaluation import comparison
from tipline.model import artifact
from tipline.monitoring import plots

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    """Write reports/evaluation.json and its picture."""
    contents = {
        "challenger": artifact.read_artifact(paths.challenger),
        "champion": artifact.read_artifact(paths.champion),
    }
    if ref := files.try_read_json(paths.champion_ref):
        artifact.check_digest(contents["champion"], ref["digest"])
    made_on = {role: spec.get("months") for role, spec in comparison.load_specs(contents).items()}
    report, compared = comparison.compare_models(settings, paths, contents, made_on)
    files.write_json(paths.evaluation, report)
    figures, gain = report["challenger"], report["gate"]["gain"]
    files.write_json(
        paths.metrics,
        {
            "log_loss": figures["log_loss"],
            "skill": figures["skill"],
            "auc": figures["auc"],
            "baseline_log_loss": report["baseline"]["log_loss"],
            "gain_over_champion": gain and gain["value"],
        },
    )
    plots.plot_evaluation(paths.evaluation.with_suffix(".png"), report, compared.scores, compared.labels)
    log.info("%s\n%s", report["verdict"], report["gate"]["words"])
