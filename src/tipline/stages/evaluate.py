"""evaluate: challenger and champion on the `evaluate` months, beside the majority and the baseline."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from tipline import files, metrics, modelfiles, plots, sampling, trips

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.metrics import Labels
    from tipline.modelfiles import Model
    from tipline.params import Settings
    from tipline.pyfunc import Floats, Probabilities

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write reports/evaluation.json and its picture."""
    challenger, champion = (loaded(folder) for folder in (layout.challenger, layout.champion))
    rows = sampling.of_role(settings, layout, "evaluate", trips.needed(challenger.spec) | trips.needed(champion.spec))
    report, scores = evaluate(rows, settings.model.target, challenger, champion)
    report = {"months": settings.sample.of("evaluate"), **report}
    files.write_json(layout.evaluation, report)
    tipped, _ = metrics.labels(rows, settings.model.target)
    plots.evaluation(layout.evaluation.with_suffix(".png"), report, scores, tipped)
    log.info("%s", report["verdict"])


def loaded(folder: Path) -> Model:
    """The model in a folder, run by the code that it carries."""
    contents = modelfiles.read(folder)
    return modelfiles.load(contents, modelfiles.digest(contents))


def evaluate(
    rows: pa.RecordBatch, target: str, challenger: Model, champion: Model
) -> tuple[dict[str, Any], dict[str, Probabilities]]:
    """Figures of both models, of the baseline and of the majority, with a verdict in words; and the models' scores."""
    tipped, _ = metrics.labels(rows, target)
    baseline = challenger.spec["baseline"]
    overall = np.full(len(rows), baseline["overall"])
    scores = {"challenger": challenger.probabilities(rows), "champion": champion.probabilities(rows)}
    of_baseline = float(metrics.losses(metrics.baseline_probabilities(rows, baseline), tipped).mean())
    everything: dict[str, Probabilities | Floats] = {
        **scores,
        "baseline": metrics.baseline_probabilities(rows, baseline),
        "majority": overall,
    }
    figures = {name: figures_of(values, tipped, of_baseline) for name, values in everything.items()}
    report = {"rows": len(rows), "tip_rate": float(tipped.mean()), **figures}
    words = worth(figures["challenger"]["skill"], baseline["by"])
    return report | {"worth": words, "verdict": words + against(figures)}, scores


def figures_of(probabilities: Probabilities | Floats, tipped: Labels, baseline: float) -> dict[str, float | None]:
    """Log-loss, skill, AUC and accuracy; AUC is None where all rows tipped or none."""
    loss = float(metrics.losses(probabilities, tipped).mean())
    both = bool(tipped.any() and not tipped.all())
    return {
        "log_loss": loss,
        "skill": metrics.skill(loss, baseline),
        "auc": float(roc_auc_score(tipped, probabilities)) if both else None,
        "accuracy": float(((probabilities > 0.5) == tipped).mean()),  # noqa: PLR2004
    }


def worth(skill: float | None, by: str) -> str:
    """What a model's skill says, in words."""
    if skill is None:
        return f"The tip rate by {by} leaves nothing to gain on these months; skill is not defined"
    adds = "adds nothing to" if skill <= 0 else f"takes {skill:.1%} off the log-loss of"
    return f"The challenger {adds} the tip rate by {by}"


def against(figures: dict[str, dict[str, float | None]]) -> str:
    """How the challenger stands to the champion, in words."""
    challenger, champion = (figures[name]["skill"] for name in ("challenger", "champion"))
    if challenger is None or champion is None:
        return "."
    if challenger == champion:
        return "; it scores as the champion does."
    word = "above" if challenger > champion else "below"
    return f"; its skill is {abs(challenger - champion):.4f} {word} the champion's."
