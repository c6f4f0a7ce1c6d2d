"""evaluate: report on challenger and champion on the `test` months, its picture, and five numbers for DVC."""

import logging

from tipline import files
from tipline.config import Settings
from tipline.evaluation import comparison, gate
from tipline.model import artifact
from tipline.monitoring import plots
from tipline.paths import Paths
from tipline.training import sampling

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    sampling.remove_unlisted_samples(settings, paths)
    contents = {role: artifact.read_artifact(getattr(paths, role)) for role in comparison.ROLES}
    ref = files.try_read_json(paths.champion_ref) or {}
    if ref:
        artifact.check_digest(contents["champion"], ref["digest"])
    tagged = {"champion": ref.get("months")}  # `register` reads them from MLflow
    report, scores, labels = comparison.compare_models(settings, paths, contents, tagged)
    figures, gain = report["challenger"], report["gate"]["gain"]
    report["gate"]["words"] += gate.UNADJUSTED if gain else ""
    numbers = {name: figures[name] for name in ("log_loss", "skill", "auc")}
    numbers |= {"baseline_log_loss": report["baseline"]["log_loss"], "gain_over_champion": gain and gain["value"]}
    files.write_json(paths.evaluation, report)
    files.write_json(paths.metrics, numbers)
    plots.plot_evaluation(paths.evaluation.with_suffix(".png"), report, scores, labels)
    log.info("%s\n%s", report["verdict"], report["gate"]["words"])
