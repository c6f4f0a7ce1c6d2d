"""evaluate: challenger and champion on the `evaluate` months, beside the majority and the baseline."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from tipline import files, metrics, model, plots, sampling
from tipline.errors import TiplineError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.metrics import Labels
    from tipline.params import Settings
    from tipline.pyfunc import Floats, Model, Probabilities

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write reports/evaluation.json and its picture."""
    months = settings.sample.of("evaluate")
    pool = sampling.read_pool([layout.sample("evaluate", month) for month in months])
    batches = sampling.labelled(pool, settings.model.target).combine_chunks().to_batches()
    if not batches:
        what = f"None of the sampled rows has a known {settings.model.target}."
        raise TiplineError(what, ", ".join(months), "Give the role evaluate to other months in params.yaml.")
    challenger, champion = (loaded(folder) for folder in (layout.challenger, layout.champion))
    report, scores = evaluate(batches[0], settings.model.target, challenger, champion)
    report = {"months": months, **report}
    files.write_json(layout.evaluation, report)
    tipped, _ = metrics.labels(batches[0], settings.model.target)
    plots.evaluation(layout.evaluation.with_suffix(".png"), report, scores, tipped)
    log.info("%s", report["verdict"])


def loaded(folder: Path) -> Model:
    """The model in a folder, run by the code that it carries."""
    contents = model.read(folder)
    return model.load(contents, model.digest(contents))


def evaluate(
    trips: pa.RecordBatch, target: str, challenger: Model, champion: Model
) -> tuple[dict[str, Any], dict[str, Probabilities]]:
    """Figures of both models, of the baseline and of the majority, with a verdict in words; and the models' scores."""
    tipped, _ = metrics.labels(trips, target)
    baseline = challenger.spec["baseline"]
    overall = np.full(len(trips), baseline["overall"])
    scores = {"challenger": challenger.probabilities(trips), "champion": champion.probabilities(trips)}
    of_baseline = float(metrics.losses(metrics.baseline_probabilities(trips, baseline), tipped).mean())
    everything: dict[str, Probabilities | Floats] = {
        **scores,
        "baseline": metrics.baseline_probabilities(trips, baseline),
        "majority": overall,
    }
    figures = {name: figures_of(values, tipped, of_baseline) for name, values in everything.items()}
    report = {"rows": len(trips), "tip_rate": float(tipped.mean()), **figures}
    return report | {"verdict": verdict(figures, baseline["by"])}, scores


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


def verdict(figures: dict[str, dict[str, float | None]], by: str) -> str:
    """What the figures say, in words."""
    skills = {name: figures[name]["skill"] for name in ("challenger", "champion")}
    if skills["challenger"] is None or skills["champion"] is None:
        return f"The tip rate by {by} leaves nothing to gain on these months; skill is not defined."
    adds = "adds nothing to" if skills["challenger"] <= 0 else f"takes {skills['challenger']:.1%} off the log-loss of"
    text = f"The challenger {adds} the tip rate by {by}"
    difference = skills["challenger"] - skills["champion"]
    if difference == 0:
        return f"{text}; it scores as the champion does."
    return f"{text}; its skill is {abs(difference):.4f} {'above' if difference > 0 else 'below'} the champion's."
