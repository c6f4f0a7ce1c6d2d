"""Compare challenger and champion on the `test` months, beside the champion's baseline, and ask the gate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from tipline.arrays import Floats, Labels, Probabilities, fill_nulls
from tipline.config import Settings
from tipline.errors import TiplineError, join_lines
from tipline.evaluation import baseline as rule
from tipline.evaluation import gate, metrics
from tipline.evaluation.gate import MadeOn
from tipline.ingest import columns
from tipline.model import artifact, golden_rows
from tipline.paths import Paths
from tipline.training import sampling

ROLES = ("challenger", "champion")
FAILURES = (TiplineError, pa.ArrowException)
SAME = "The challenger is the champion: there is nothing to promote."
HOURS = ("0 to 5", "6 to 11", "12 to 17", "18 to 23", rule.MISSING)


class Comparison:
    """The scores of `challenger` and `champion` on the same prepared rows, whose target is known.

    `scores` lacks a model that cannot score the rows. The baseline is the champion's: a challenger trained on fewer
    rows has a worse one, which would flatter its skill.
    """

    def __init__(
        self, rows: pa.RecordBatch, target: str, baseline: Mapping[str, Any], scores: Mapping[str, Probabilities]
    ) -> None:
        self.rows, self.by, self.scores = rows, baseline["by"], scores
        self.labels: Labels = metrics.read_labels(rows, target)[0]
        self.probabilities: dict[str, Probabilities | Floats] = {
            **scores,
            "baseline": rule.predict_baseline(rows, baseline),
        }
        self.losses = {name: metrics.compute_log_loss(one, self.labels) for name, one in self.probabilities.items()}


def compare_models(
    settings: Settings, paths: Paths, contents: Mapping[str, Mapping[str, bytes]], made_on: MadeOn
) -> tuple[dict[str, Any], Comparison]:
    """Return the report on `challenger` and `champion`, given as files, and what it is made from.

    `made_on` is that of `gate.decide_promotion`. Raises TiplineError if a sample is missing or no target is known.
    """
    specs = {role: artifact.read_spec(of_model) for role, of_model in contents.items()}
    months, limits = settings.sample.get_months("test"), settings.evaluate
    types = {name: type_ for spec in specs.values() for name, type_ in columns.list_needed_columns(spec).items()}
    types |= dict.fromkeys(limits.segments, columns.CATEGORY)
    rows, target = sampling.read_role(settings, paths, "test", types), settings.model.target
    digests = {role: artifact.hash_artifact(of_model) for role, of_model in contents.items()}
    time = next((spec["time"] for spec in specs.values() if "time" in spec), "")
    scores, obstacles = {}, []
    for role, spec in specs.items():
        if spec["target"] != target:
            obstacles.append(f"the {role} predicts {spec['target']}, not {target}")
        result = score_rows(contents[role], digests[role], rows)
        if isinstance(result, str):
            obstacles.append(f"the {role} cannot score these rows: {result}")
        else:
            scores[role] = result
    if not time:
        obstacles.append("neither model says which column is the time")
    compared = Comparison(rows, target, specs["champion"]["baseline"], scores)
    if digests["challenger"] == digests["champion"]:
        verdict = gate.build_verdict([SAME]) | {"words": SAME}
    elif obstacles:
        verdict = gate.build_verdict(obstacles)
    else:
        gate_rows = build_gate_rows(compared, time, months, limits.segments)
        verdict = gate.decide_promotion(gate_rows, made_on, limits.tolerance, limits.segment_tolerance)
    return {"months": months, **build_report(compared), "gate": verdict, "made": digests}, compared


def score_rows(contents: Mapping[str, bytes], digest: str, rows: pa.RecordBatch) -> Probabilities | str:
    """Return a model's scores of the rows, or why it cannot score them."""
    try:
        scores = golden_rows.load_checked_model(contents, digest, "this machine")[0].probabilities(rows)
    except FAILURES as error:
        return join_lines(error)
    return scores if np.isfinite(scores).all() else "some of its scores are not finite"


def build_gate_rows(compared: Comparison, time: str, months: Sequence[str], segments: Sequence[str]) -> gate.Rows:
    """Build what the gate judges on; `time` and `segments` are columns."""
    rows, times = compared.rows, compared.rows[time]
    challenger, champion, baseline = (compared.losses[name].astype(float) for name in (*ROLES, "baseline"))
    hours = (fill_nulls(pc.hour(times), 24) // 6).astype(np.int32)
    groups = {name: rule.group_rows(rows, [name]) for name in segments} | {"hour": (HOURS, hours)}
    month, day = rows[sampling.MONTH].to_numpy(), metrics.read_days(times)
    return gate.Rows(months, month, day, champion - challenger, baseline, compared.labels, groups)


def build_report(compared: Comparison) -> dict[str, Any]:
    """Return the figures of both models and of the champion's baseline, and what they say.

    The figures of a model that cannot score the rows are None, as is the AUC for rows of one class.
    """
    labels, losses = compared.labels, compared.losses
    unit = float(losses["baseline"].mean())
    figures: dict[str, dict[str, float | None]] = {}
    for name in (*ROLES, "baseline"):
        figures[name] = dict.fromkeys(("log_loss", "skill", "auc"))
        if name in losses:
            loss, auc = float(losses[name].mean()), None
            if 0 < labels.mean() < 1:
                auc = float(roc_auc_score(labels, compared.probabilities[name]))
            figures[name] = {"log_loss": loss, "skill": metrics.compute_skill(loss, unit), "auc": auc}
    verdict = describe_skills(figures, " and ".join(compared.by))
    return {"rows": len(labels), **figures, "verdict": verdict}


def describe_skills(figures: Mapping[str, Mapping[str, float | None]], by: str) -> str:
    """Return a sentence about the challenger's skill, beside the champion's."""
    challenger, champion = (figures[role]["skill"] for role in ROLES)
    if figures["challenger"]["log_loss"] is None:
        return "The challenger cannot score these rows."
    if challenger is None:
        return f"The rate by {by} leaves nothing to gain on these months; skill is not defined."
    adds = "adds nothing to" if challenger <= 0 else f"takes {challenger:.1%} off the log-loss of"
    worth = f"The challenger {adds} the rate by {by}"
    if champion is None:
        return f"{worth}."
    if challenger == champion:
        return f"{worth}; it scores as the champion does."
    word = "above" if challenger > champion else "below"
    return f"{worth}; its skill is {abs(challenger - champion):.4f} {word} the champion's."
