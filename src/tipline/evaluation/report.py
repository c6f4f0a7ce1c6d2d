"""The report on challenger and champion: their figures on the same rows, beside baseline and majority, in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from tipline.evaluation import baseline as rule
from tipline.evaluation import gate, metrics, times
from tipline.evaluation.intervals import MIN_ROWS, Ratio
from tipline.ingest import columns
from tipline.model.pyfunc import fill_nulls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Codes, Floats, Probabilities

    Figures = dict[str, float | None]

ROLES = ("challenger", "champion")
TWO_SIDED = 0.975
HOURS = ("0 to 5", "6 to 11", "12 to 17", "18 to 23", rule.MISSING)


@dataclass(frozen=True)
class Compared:
    """Two models' scores of the same rows.

    Attributes
    ----------
    rows
        Prepared trips whose target is known.
    target
        What is to be predicted.
    specs
        By role, `challenger` and `champion`: the model's model.json.
    given
        By role: the model's scores of the rows, or why it cannot score them.
    """

    rows: pa.RecordBatch
    target: str
    specs: Mapping[str, Mapping[str, Any]]
    given: Mapping[str, Probabilities | str]

    @cached_property
    def labels(self) -> Labels:
        """The rows' labels."""
        return metrics.read_labels(self.rows, self.target)[0]

    @cached_property
    def scores(self) -> dict[str, Probabilities]:
        """The scores of the models that can score."""
        return {role: scores for role, scores in self.given.items() if not isinstance(scores, str)}

    @cached_property
    def probabilities(self) -> dict[str, Probabilities | Floats]:
        """The scores, and the probabilities of the `majority` and of the champion's `baseline`.

        The champion's: that of a challenger on fewer rows would be worse, and its skill look better for it.
        """
        baseline = self.specs["champion"]["baseline"]
        majority = np.full(len(self.rows), baseline["overall"])
        return {**self.scores, "baseline": rule.predict_baseline(self.rows, baseline), "majority": majority}

    @cached_property
    def losses(self) -> dict[str, Probabilities | Floats]:
        """The log-loss of each row, by what gave the probability."""
        return {name: metrics.compute_log_loss(of, self.labels) for name, of in self.probabilities.items()}

    @property
    def time(self) -> str | None:
        """The column that days are told by."""
        return next((str(spec["time"]) for spec in self.specs.values() if "time" in spec), None)

    @property
    def by(self) -> list[str]:
        """The categories of the champion's baseline."""
        return columns.get_baseline_columns(self.specs["champion"]["baseline"])


# ---- the gate ----


def find_obstacles(compared: Compared) -> Iterator[str]:
    """Why two models cannot be compared."""
    for role, spec in compared.specs.items():
        if spec["target"] != compared.target:
            yield f"the {role} predicts {spec['target']}, not {compared.target}"
        if role not in compared.scores:
            yield f"the {role} cannot score these rows: {compared.given[role]}"
    if not compared.time:
        yield "neither model says which column is the time"


def build_gate_rows(compared: Compared, months: Sequence[str], place: Codes, segments: Sequence[str]) -> gate.Rows:
    """What the gate looks at; `place` is each row's among the months, `segments` are columns."""
    rows, losses, time = compared.rows, compared.losses, compared.rows[compared.time]
    challenger, champion, baseline = (losses[name].astype(float) for name in (*ROLES, "baseline"))
    named = {name: rule.group_rows(rows, [name]) for name in segments} | {"hour": (HOURS, hour_bands(time))}
    return gate.Rows(months, place, times.read_days(time), champion - challenger, baseline, compared.labels, named)


def hour_bands(column: pa.Array) -> Codes:
    """Each time's place in HOURS."""
    bands: Codes = (fill_nulls(pc.hour(column), 24) // 6).astype(np.int32)
    return bands


# ---- figures ----


def build_report(compared: Compared) -> dict[str, Any]:
    """Figures of both models, of the champion's baseline and of the majority, with what they say in words.

    Those of a model that cannot score the rows are None.
    """
    figures = {name: figures_of(compared, name) for name in (*ROLES, "baseline", "majority")}
    words = worth(figures["challenger"], " and ".join(compared.by))
    return {
        "rows": len(compared.rows),
        "tip_rate": float(compared.labels.mean()),
        **figures,
        "groups": groups(compared),
        "tips": {role: tips(compared, role) for role in compared.given},
        "worth": words,
        "verdict": words + against(figures),
    }


def figures_of(compared: Compared, name: str) -> Figures:
    """Log-loss, skill, AUC and accuracy of a model or a rule; AUC is None where all rows tipped or none."""
    if name not in compared.losses:
        return dict.fromkeys(("log_loss", "skill", "auc", "accuracy"))
    probabilities, labels = compared.probabilities[name], compared.labels
    loss, of_baseline = (float(compared.losses[one].mean()) for one in (name, "baseline"))
    both = bool(labels.any() and not labels.all())
    return {
        "log_loss": loss,
        "skill": metrics.compute_skill(loss, of_baseline),
        "auc": float(roc_auc_score(labels, probabilities)) if both else None,
        "accuracy": float(np.mean((probabilities > 0.5) == labels)),  # noqa: PLR2004
    }


def groups(compared: Compared) -> dict[str, dict[str, Any]]:
    """What `skills` says of each of the baseline's groups."""
    names, codes = rule.group_rows(compared.rows, compared.by)
    losses = {name: compared.losses[name].astype(float) for name in (*compared.scores, "baseline")}
    found = {}
    for code in np.unique(codes):
        inside = codes == code
        means = {name: float(loss[inside].mean()) for name, loss in losses.items()}
        found[names[code]] = skills(means, int(inside.sum()))
    return found


def skills(means: Mapping[str, float], rows: int) -> dict[str, Any]:
    """Rows and both models' skill in a group, from mean log-losses; None where it is not judged, and `why`."""
    why = None
    if rows < MIN_ROWS:
        why = f"not judged: fewer than {MIN_ROWS:,} rows"
    elif means["baseline"] < metrics.NEXT_TO_NOTHING:
        why = "the baseline leaves nothing to gain"
    of_models = {role: None if why else metrics.compute_skill(means.get(role), means["baseline"]) for role in ROLES}
    return {"rows": rows, **of_models, "why": why}


def tips(compared: Compared, role: str) -> Figures | None:
    """Calibration in the large: tips expected, and those that there were; their ratio with its 95% interval, by day.

    None where the model cannot score the rows or nothing says what a day is; a single day has no interval.
    """
    if role not in compared.scores or compared.time is None:
        return None
    days = times.rank_values(times.read_days(compared.rows[compared.time]))
    there, expected = (np.bincount(days, of).astype(float) for of in (compared.labels, compared.scores[role]))
    found = Ratio.estimate(there, expected)
    bounds = {"lower": found.lower(TWO_SIDED), "upper": found.upper(TWO_SIDED)}
    figures = {"expected": expected.sum(), "there": there.sum(), "ratio": found.value, **bounds}
    return {name: float(value) if np.isfinite(value) else None for name, value in figures.items()}


def worth(figures: Figures, by: str) -> str:
    """What a model's skill says, in words."""
    if figures["log_loss"] is None:
        return "The challenger cannot score these rows"
    if figures["skill"] is None:
        return f"The tip rate by {by} leaves nothing to gain on these months; skill is not defined"
    adds = "adds nothing to" if figures["skill"] <= 0 else f"takes {figures['skill']:.1%} off the log-loss of"
    return f"The challenger {adds} the tip rate by {by}"


def against(figures: Mapping[str, Figures]) -> str:
    """How the challenger stands to the champion, in words."""
    challenger, champion = (figures[role]["skill"] for role in ROLES)
    if challenger is None or champion is None:
        return "."
    if challenger == champion:
        return "; it scores as the champion does."
    word = "above" if challenger > champion else "below"
    return f"; its skill is {abs(challenger - champion):.4f} {word} the champion's."
