"""Compare challenger and champion on the `test` months, beside the champion's baseline, and ask the gate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from tipline.arrays import Codes, Floats, Labels, Probabilities, fill_nulls
from tipline.config import Settings
from tipline.errors import TiplineError, join_lines
from tipline.evaluation import baseline, gate, metrics
from tipline.ingest import columns
from tipline.model import artifact, golden_rows
from tipline.paths import Paths
from tipline.training import sampling

ROLES = ("challenger", "champion")
FAILURES = (TiplineError, pa.ArrowException)
SAME = "The challenger is the champion: there is nothing to promote."
Groups = Mapping[str, tuple[Sequence[str], Codes]]
Values = Mapping[str, Probabilities | Floats]  # of rows, by role and `baseline`
HOURS = ["0 to 5", "6 to 11", "12 to 17", "18 to 23", baseline.MISSING]


def compare_models(
    settings: Settings, paths: Paths, contents: Mapping[str, Mapping[str, bytes]], tagged: gate.MadeOn
) -> tuple[dict[str, Any], dict[str, Probabilities], Labels]:
    """Return the report on `challenger` and `champion`, given as files, their scores, and the labels of the rows.

    `tagged` has the months of models that tipline did not make, as `gate.decide_promotion` takes them. The scores of a
    model that cannot score the rows are missing. The baseline is the champion's: a challenger trained on fewer rows has
    a worse one, which would flatter its skill. Raises TiplineError if a sample is missing or no target is known.
    """
    specs = {role: artifact.read_spec(of_model) for role, of_model in contents.items()}
    digests = {role: artifact.hash_artifact(of_model) for role, of_model in contents.items()}
    limits, target = settings.evaluate, settings.model.target
    types = {name: type_ for spec in specs.values() for name, type_ in columns.list_needed_columns(spec).items()}
    types |= dict.fromkeys(limits.segments, columns.CATEGORY)
    rows = sampling.read_role(settings, paths, "test", types)
    labels, _ = metrics.read_labels(rows, target)
    scores, obstacles = dict[str, Probabilities](), []
    for role, spec in specs.items():
        if spec["target"] != target:
            obstacles.append(f"the {role} predicts {spec['target']}, not {target}")
        try:
            model, *_ = golden_rows.load_checked_model(contents[role], digests[role], "this machine")
            found = model.probabilities(rows)
        except FAILURES as error:
            obstacles.append(f"the {role} cannot score these rows: {join_lines(error)}")
            continue
        if np.isfinite(found).all():
            scores[role] = found
        else:
            obstacles.append(f"the {role} cannot score these rows: some of its scores are not finite")
    time, fitted = specs["challenger"]["time"], specs["champion"]["baseline"]
    groups = group_segments(settings, rows, time)
    probabilities: Values = {**scores, "baseline": baseline.predict_baseline(rows, fitted)}
    losses = {name: metrics.compute_log_loss(values, labels) for name, values in probabilities.items()}
    if digests["challenger"] == digests["champion"]:
        verdict = gate.build_verdict([SAME]) | {"words": SAME}
    elif obstacles:
        verdict = gate.build_verdict(obstacles)
    else:
        judged = build_gate_rows(settings, rows, time, losses, groups)
        made_on = {role: spec.get("months") or tagged.get(role) for role, spec in specs.items()}
        verdict = gate.decide_promotion(judged, made_on, limits.tolerance, limits.segment_tolerance)
    figures = {name: measure_scores(name, probabilities, losses, labels) for name in (*ROLES, "baseline")}
    words = describe_skills(figures, " and ".join(fitted["by"]))
    shares = share_losses(groups, {role: losses[role] for role in scores}, specs)
    words += describe_unseen(shares, groups, losses)
    report = {"months": settings.sample.get_months("test"), "rows": len(labels), **figures, "verdict": words}
    return report | {"gate": verdict, "groups": shares, "made": digests}, scores, labels


def group_segments(settings: Settings, rows: pa.RecordBatch, time: str) -> Groups:
    """Return the segments by column: their names, and the segment of each row as a position among them."""
    groups = {name: baseline.group_rows(rows, [name]) for name in settings.evaluate.segments}
    return groups | {"hour": group_hours(rows[time])}


def share_losses(groups: Groups, losses: Values, specs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each segment's shares of the rows and of each model's loss, and the models that never saw its value."""
    known = {
        (role, column): {*bins["values"], *([baseline.MISSING] if bins["counts"][-1] else [])}
        for role, spec in specs.items()
        for column, bins in spec.get("reference", {}).get("features", {}).items()
        if bins["kind"] == "category"
    }
    shares = []
    for column, (names, codes) in groups.items():
        rows = np.bincount(codes, minlength=len(names))
        by_role = {role: np.bincount(codes, loss, len(names)) / loss.sum(dtype=float) for role, loss in losses.items()}
        for code in np.flatnonzero(rows).tolist():
            of_loss = {f"{role}_loss_share": float(share[code]) for role, share in by_role.items()}
            unseen = [role for role in losses if names[code] not in known.get((role, column), names)]
            segment = {"column": column, "value": names[code], "rows": int(rows[code]), "unseen_by": unseen}
            shares.append({**segment, "row_share": float(rows[code] / len(codes)), **of_loss})
    return shares


def describe_unseen(shares: Sequence[Mapping[str, Any]], groups: Groups, losses: Values) -> str:
    """Return sentences about values that a model never saw and that carry a tenth of its loss."""
    words, kept = "", np.ones(len(losses["baseline"]), bool)
    for one in shares:
        for role in one["unseen_by"]:
            if (share := one[f"{role}_loss_share"]) >= metrics.LARGE_SHARE:
                names, codes = groups[one["column"]]
                kept &= codes != list(names).index(one["value"])
                words += f" {one['row_share']:.1%} of the rows have {one['column']} {one['value']}, which the {role} "
                words += f"never saw in training; they carry {share:.0%} of its loss."
    if not kept.all() and kept.any() and losses.keys() >= {*ROLES}:
        gain = float((losses["champion"] - losses["challenger"])[kept].sum() / losses["baseline"][kept].sum())
        words += f" Without these rows the challenger's gain over the champion is {gain:+.4f} skill points."
    return words


def build_gate_rows(settings: Settings, rows: pa.RecordBatch, time: str, losses: Values, groups: Groups) -> gate.Rows:
    """Build what the gate judges on from the losses of both models and the baseline; `time` is a column."""
    month, day = rows[sampling.MONTH].to_numpy(), metrics.read_days(rows[time])
    challenger, champion, unit = (losses[name].astype(float) for name in (*ROLES, "baseline"))
    labels, _ = metrics.read_labels(rows, settings.model.target)
    return gate.Rows(settings.sample.get_months("test"), month, day, champion - challenger, unit, labels, groups)


def group_hours(times: pa.Array) -> tuple[list[str], Codes]:
    return HOURS, (fill_nulls(pc.hour(times), 24) // 6).astype(np.int32)


def measure_scores(name: str, scores: Values, losses: Values, labels: Labels) -> dict[str, float | None]:
    """Return the figures of one model or the baseline; without scores all are None, for rows of one class the AUC."""
    if name not in scores:
        return dict.fromkeys(("log_loss", "skill", "auc"))
    loss = float(losses[name].mean())
    auc = float(roc_auc_score(labels, scores[name])) if 0 < labels.mean() < 1 else None
    return {"log_loss": loss, "skill": metrics.compute_skill(loss, float(losses["baseline"].mean())), "auc": auc}


def describe_skills(figures: Mapping[str, Mapping[str, float | None]], by: str) -> str:
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
