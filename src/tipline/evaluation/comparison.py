"""Compare challenger and champion on the `test` months, beside baseline and majority, and ask the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from tipline.arrays import Floats, Probabilities, fill_nulls
from tipline.config import Settings
from tipline.errors import TiplineError, join_lines
from tipline.evaluation import baseline as rule
from tipline.evaluation import gate, metrics
from tipline.evaluation.gate import MadeOn
from tipline.evaluation.intervals import MIN_ROWS, Ratio
from tipline.evaluation.metrics import Labels
from tipline.ingest import columns
from tipline.model import artifact, external
from tipline.paths import Paths
from tipline.training import sampling

Figures = dict[str, float | None]

ROLES = ("challenger", "champion")
FAILURES = (TiplineError, *external.FAILURES)
SAME = "The challenger is the champion: there is nothing to promote."
TWO_SIDED = 0.975
HOURS = ("0 to 5", "6 to 11", "12 to 17", "18 to 23", rule.MISSING)


class Comparison:
    """The scores of `challenger` and `champion` on the same prepared rows, whose target is known.

    `specs` has model.json of each model, `results` its scores or why it cannot score the rows.
    """

    def __init__(
        self,
        rows: pa.RecordBatch,
        target: str,
        specs: Mapping[str, Mapping[str, Any]],
        results: Mapping[str, Probabilities | str],
    ) -> None:
        self.rows, self.target, self.specs, self.results = rows, target, specs, results
        self.labels: Labels = metrics.read_labels(rows, target)[0]
        self.time: str | None = next((spec["time"] for spec in specs.values() if "time" in spec), None)
        self.scores = {role: result for role, result in results.items() if not isinstance(result, str)}
        # The champion's: a challenger trained on fewer rows has a worse baseline, which would flatter its skill.
        baseline = specs["champion"]["baseline"]
        self.by = columns.get_baseline_columns(baseline)
        rules = {"baseline": rule.predict_baseline(rows, baseline), "majority": np.full(len(rows), baseline["overall"])}
        self.probabilities: dict[str, Probabilities | Floats] = {**self.scores, **rules}
        self.losses = {name: metrics.compute_log_loss(of, self.labels) for name, of in self.probabilities.items()}


def load_specs(contents: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, Any]]:
    """Return the model.json of each model, given as files."""
    return {role: artifact.read_spec(of_model) for role, of_model in contents.items()}


def compare_models(
    settings: Settings, paths: Paths, contents: Mapping[str, Mapping[str, bytes]], made_on: MadeOn
) -> tuple[dict[str, Any], Comparison]:
    """Return the report on `challenger` and `champion`, given as files, and what it is made from.

    `made_on` is that of `gate.decide_promotion`. Raises TiplineError if a sample is missing or no target is known.
    """
    specs, months = load_specs(contents), settings.sample.get_months("test")
    types = {name: type_ for spec in specs.values() for name, type_ in columns.list_needed_columns(spec).items()}
    types |= dict.fromkeys(settings.evaluate.segments, columns.CATEGORY)
    rows = sampling.read_role(settings, paths, "test", types)
    digests = {role: artifact.hash_artifact(of_model) for role, of_model in contents.items()}
    results = {role: score_rows(of_model, digests[role], rows) for role, of_model in contents.items()}
    compared = Comparison(rows, settings.model.target, specs, results)
    if digests["challenger"] == digests["champion"]:
        verdict = gate.build_refusal([SAME]) | {"words": SAME}
    elif obstacles := list(find_obstacles(compared)):
        verdict = gate.build_refusal(obstacles)
    else:
        limits = settings.evaluate
        gate_rows = build_gate_rows(compared, months, limits.segments)
        verdict = gate.decide_promotion(gate_rows, made_on, limits.tolerance, limits.segment_tolerance)
    return {"months": months, **build_report(compared), "gate": verdict, "made": digests}, compared


def score_rows(contents: Mapping[str, bytes], digest: str, rows: pa.RecordBatch) -> Probabilities | str:
    """Return a model's scores of the rows, or why it cannot score them."""
    try:
        scores = artifact.load_model(contents, digest).probabilities(rows)
    except FAILURES as error:
        return join_lines(error)
    return scores if np.isfinite(scores).all() else "some of its scores are not finite"


def find_obstacles(compared: Comparison) -> Iterator[str]:
    """Yield reasons why the two models cannot be compared."""
    for role, spec in compared.specs.items():
        if spec["target"] != compared.target:
            yield f"the {role} predicts {spec['target']}, not {compared.target}"
        if role not in compared.scores:
            yield f"the {role} cannot score these rows: {compared.results[role]}"
    if not compared.time:
        yield "neither model says which column is the time"


def build_gate_rows(compared: Comparison, months: Sequence[str], segments: Sequence[str]) -> gate.Rows:
    """Build what the gate judges on; `segments` are columns."""
    rows, time = compared.rows, compared.rows[compared.time]
    challenger, champion, baseline = (compared.losses[name].astype(float) for name in (*ROLES, "baseline"))
    hours = (fill_nulls(pc.hour(time), 24) // 6).astype(np.int32)
    groups = {name: rule.group_rows(rows, [name]) for name in segments} | {"hour": (HOURS, hours)}
    month, day = rows[sampling.MONTH].to_numpy(), metrics.read_days(time)
    return gate.Rows(months, month, day, champion - challenger, baseline, compared.labels, groups)


def build_report(compared: Comparison) -> dict[str, Any]:
    """Return the figures of both models, of the champion's baseline and of the majority, and what they say.

    The figures of a model that cannot score the rows are None.
    """
    figures = {name: compute_figures(compared, name) for name in (*ROLES, "baseline", "majority")}
    worth, verdict = describe_skills(figures, " and ".join(compared.by))
    return {
        "rows": len(compared.rows),
        **figures,
        "groups": compute_group_skills(compared),
        "expected": {role: compare_expected(compared, role) for role in ROLES},
        "worth": worth,
        "verdict": verdict,
    }


def compute_figures(compared: Comparison, name: str) -> Figures:
    """Compute log-loss, skill and AUC of a model or rule; AUC is None for rows of one class."""
    if name not in compared.losses:
        return dict.fromkeys(("log_loss", "skill", "auc"))
    loss, unit = (float(compared.losses[one].mean()) for one in (name, "baseline"))
    both = 0 < compared.labels.mean() < 1
    auc = float(roc_auc_score(compared.labels, compared.probabilities[name])) if both else None
    return {"log_loss": loss, "skill": metrics.compute_skill(loss, unit), "auc": auc}


def compute_group_skills(compared: Comparison) -> dict[str, dict[str, Any]]:
    """Return rows and both models' skill in each of the baseline's groups; None if it is not judged."""
    names, codes = rule.group_rows(compared.rows, compared.by)
    groups = {}
    for code in np.unique(codes):
        inside = codes == code
        means = {name: float(losses[inside].mean(dtype=float)) for name, losses in compared.losses.items()}
        skills = {role: metrics.compute_skill(means.get(role), means["baseline"]) for role in ROLES}
        rows = int(inside.sum())
        groups[names[code]] = {"rows": rows, **(skills if rows >= MIN_ROWS else dict.fromkeys(ROLES))}
    return groups


def compare_expected(compared: Comparison, role: str) -> Figures | None:
    """Return expected and observed positive rows, and their ratio with its 95% interval by day.

    None if the model cannot score the rows or no column is the time; a single day has no interval.
    """
    if role not in compared.scores or compared.time is None:
        return None
    days = metrics.rank_values(metrics.read_days(compared.rows[compared.time]))
    observed, expected = (np.bincount(days, of).astype(float) for of in (compared.labels, compared.scores[role]))
    ratio = Ratio.estimate(observed, expected)
    bounds = {"lower": ratio.lower(TWO_SIDED), "upper": ratio.upper(TWO_SIDED)}
    figures = {"expected": expected.sum(), "there": observed.sum(), "ratio": ratio.value, **bounds}
    return {name: float(value) if np.isfinite(value) else None for name, value in figures.items()}


def describe_skills(figures: Mapping[str, Figures], by: str) -> tuple[str, str]:
    """Return a sentence about the challenger's skill, and one that also compares it to the champion's."""
    challenger, champion = (figures[role]["skill"] for role in ROLES)
    if figures["challenger"]["log_loss"] is None:
        worth = "The challenger cannot score these rows"
    elif challenger is None:
        worth = f"The rate by {by} leaves nothing to gain on these months; skill is not defined"
    else:
        adds = "adds nothing to" if challenger <= 0 else f"takes {challenger:.1%} off the log-loss of"
        worth = f"The challenger {adds} the rate by {by}"
    if challenger is None or champion is None:
        return worth, f"{worth}."
    if challenger == champion:
        return worth, f"{worth}; it scores as the champion does."
    word = "above" if challenger > champion else "below"
    return worth, f"{worth}; its skill is {abs(challenger - champion):.4f} {word} the champion's."
