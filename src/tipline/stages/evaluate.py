"""evaluate: challenger and champion on the `evaluate` months, beside majority and baseline; the gate's verdict."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from tipline import files, pyfunc
from tipline.errors import TiplineError, one_line
from tipline.models import modelfiles, sampling
from tipline.months import trips
from tipline.pages import plots
from tipline.statistics import baseline as rule
from tipline.statistics import gate, metrics, times
from tipline.statistics.intervals import MIN_ROWS, Ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tipline.layout import Layout
    from tipline.params import Settings
    from tipline.pyfunc import Codes, Floats, Probabilities
    from tipline.statistics.gate import MadeOn
    from tipline.statistics.metrics import Labels

    Specs = Mapping[str, Mapping[str, Any]]
    Scores = Mapping[str, Probabilities | str]
    Figures = dict[str, float | None]

log = logging.getLogger(__name__)

ROLES = ("challenger", "champion")
MONTH = "month"
TWO_SIDED = 0.975
HOURS = ("0 to 5", "6 to 11", "12 to 17", "18 to 23", rule.MISSING)
# What a model that does not fit the rows, or is not fit to be run here, may raise.
FAILURES = (
    TiplineError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def run(settings: Settings, layout: Layout) -> None:
    """Write reports/evaluation.json and its picture."""
    contents = dict(zip(ROLES, (modelfiles.read(layout.challenger), modelfiles.read(layout.champion)), strict=True))
    if ref := files.read_json_if_any(layout.ref):
        modelfiles.check(contents["champion"], ref["digest"])
    made_on = {role: spec.get("months") for role, spec in specs_of(contents).items()}
    report, scores, tipped = evaluated(settings, layout, contents, made_on)
    files.write_json(layout.evaluation, report)
    plots.evaluation(layout.evaluation.with_suffix(".png"), report, scores, tipped)
    log.info("%s\n%s", report["verdict"], report["gate"]["words"])


def specs_of(contents: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, Any]]:
    """The model.json of each model."""
    return {role: json.loads(of_model[pyfunc.SPEC]) for role, of_model in contents.items()}


def evaluated(
    settings: Settings, layout: Layout, contents: Mapping[str, Mapping[str, bytes]], made_on: MadeOn
) -> tuple[dict[str, Any], dict[str, Probabilities], Labels]:
    """The report on two models, given as files; the scores of those that can score; the labels."""
    specs = specs_of(contents)
    categories = dict.fromkeys(settings.evaluate.segments, trips.CATEGORY)
    rows = read(settings, layout, trips.needed(specs["challenger"]) | trips.needed(specs["champion"]) | categories)
    scores = {role: scored(of_model, rows) for role, of_model in contents.items()}
    made = made_from(settings, layout, {role: modelfiles.digest(of_model) for role, of_model in contents.items()})
    same = made["challenger"] == made["champion"]
    verdict = nothing_to_promote() if same else judged(settings, rows, specs, scores, made_on)
    report = {"months": settings.sample.of("evaluate"), **evaluate(rows, specs, scores), "gate": verdict, "made": made}
    tipped, _ = metrics.labels(rows, settings.model.target)
    return report, usable(scores), tipped


def read(settings: Settings, layout: Layout, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """The sampled rows whose target is known, with the place of their month in the column `month`.

    Raises
    ------
    TiplineError
        Where there is no such row, or a sample is missing.
    """
    months, target = settings.sample.of("evaluate"), settings.model.target
    tables = []
    for place, path in enumerate(samples(settings, layout)):
        table = sampling.labelled(trips.with_columns(pq.read_table(path), types), target)
        tables.append(table.append_column(MONTH, pa.array(np.full(len(table), place, np.int32))))
    known = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks().to_batches()
    if not known:
        what = f"None of the sampled rows has a known {target}."
        raise TiplineError(what, ", ".join(months), "Give the role evaluate to other months in params.yaml.")
    return known[0]


def samples(settings: Settings, layout: Layout) -> list[Path]:
    """The samples of the months, in their order."""
    paths = [layout.sample("evaluate", month) for month in settings.sample.of("evaluate")]
    for path in paths:
        if not path.is_file():
            raise TiplineError(f"There is no sample of {path.stem}.", str(path), f"Run: dvc repro sample@{path.stem}")
    return paths


def made_from(settings: Settings, layout: Layout, digests: Mapping[str, str]) -> dict[str, str]:
    """What a verdict is of: the digests of both models, of the rows and of the settings."""
    rows = files.digest_of({path.stem: files.sha256(path) for path in samples(settings, layout)})
    limits = files.digest_of([gate.RULE, settings.evaluate.model_dump(), settings.model.target])
    return {**digests, "rows": rows, "settings": limits}


def scored(contents: Mapping[str, bytes], rows: pa.RecordBatch) -> Probabilities | str:
    """A model's scores of the rows, or why it cannot score them."""
    try:
        scores = modelfiles.load(contents, modelfiles.digest(contents)).probabilities(rows)
    except FAILURES as error:
        return one_line(error)
    return scores if np.isfinite(scores).all() else "it gives scores that are no number"


def usable(scores: Scores) -> dict[str, Probabilities]:
    """The scores of the models that can score."""
    return {role: of for role, of in scores.items() if not isinstance(of, str)}


# ---- the gate ----


def nothing_to_promote() -> dict[str, Any]:
    """The verdict on the champion itself."""
    words = "The challenger is the champion: there is nothing to promote."
    return gate.refused([words]) | {"words": words}


def judged(settings: Settings, rows: pa.RecordBatch, specs: Specs, scores: Scores, made_on: MadeOn) -> dict[str, Any]:
    """The gate's verdict on two different models."""
    reasons = list(incomparable(settings, specs, scores))
    if reasons:
        return gate.refused(reasons)
    limits = settings.evaluate
    compared = gate_rows(settings, rows, specs, scores)
    return gate.decide(compared, made_on, limits.tolerance, limits.segment_tolerance)


def incomparable(settings: Settings, specs: Specs, scores: Scores) -> Iterator[str]:
    """Why two models cannot be compared."""
    for role, spec in specs.items():
        if spec["target"] != settings.model.target:
            yield f"the {role} predicts {spec['target']}, not {settings.model.target}"
        if isinstance(scores[role], str):
            yield f"the {role} cannot score these rows: {scores[role]}"
    if not time_of(specs):
        yield "neither model says which column is the time"


def time_of(specs: Specs) -> str | None:
    """The column that days are told by."""
    return next((str(spec["time"]) for spec in specs.values() if "time" in spec), None)


def gate_rows(settings: Settings, rows: pa.RecordBatch, specs: Specs, scores: Scores) -> gate.Rows:
    """What the gate looks at."""
    tipped, _ = metrics.labels(rows, settings.model.target)
    of_baseline = rule.probabilities(rows, specs["champion"]["baseline"])
    losses = {role: losses_of(values, tipped) for role, values in usable(scores).items()}
    return gate.Rows(
        settings.sample.of("evaluate"),
        rows[MONTH].to_numpy(),
        times.days(rows[time_of(specs)]),
        losses["champion"] - losses["challenger"],
        losses_of(of_baseline, tipped),
        tipped,
        {name: rule.groups(rows, [name]) for name in settings.evaluate.segments}
        | {"hour": (HOURS, hour_bands(rows[time_of(specs)]))},
    )


def losses_of(probabilities: Probabilities | Floats, tipped: Labels) -> Floats:
    """Log-loss of each row, as doubles."""
    losses: Floats = metrics.losses(probabilities, tipped).astype(np.float64)
    return losses


def hour_bands(column: pa.Array) -> Codes:
    """Each time's place in HOURS."""
    bands: Codes = (pyfunc.filled(pc.hour(column), 24) // 6).astype(np.int32)
    return bands


# ---- figures ----


def evaluate(rows: pa.RecordBatch, specs: Specs, scores: Scores) -> dict[str, Any]:
    """Figures of both models, of the champion's baseline and of the majority, with what they say in words.

    The champion's: that of a challenger on fewer rows would be worse, and its skill look better for it.

    Parameters
    ----------
    scores
        Of a model that cannot score the rows, why: its figures are None.
    """
    target, baseline = specs["challenger"]["target"], specs["champion"]["baseline"]
    tipped, _ = metrics.labels(rows, target)
    rules = {"baseline": rule.probabilities(rows, baseline), "majority": np.full(len(rows), baseline["overall"])}
    of_baseline = float(metrics.losses(rules["baseline"], tipped).mean())
    figures = {name: figures_of(values, tipped, of_baseline) for name, values in {**scores, **rules}.items()}
    words = worth(figures["challenger"], " and ".join(trips.grouped_by(baseline)))
    return {
        "rows": len(rows),
        "tip_rate": float(tipped.mean()),
        **figures,
        "groups": groups(rows, tipped, baseline, scores),
        "tips": {role: tips(rows, tipped, time_of(specs), values) for role, values in scores.items()},
        "worth": words,
        "verdict": words + against(figures),
    }


def figures_of(probabilities: Probabilities | Floats | str, tipped: Labels, baseline: float) -> Figures:
    """Log-loss, skill, AUC and accuracy; AUC is None where all rows tipped or none."""
    if isinstance(probabilities, str):
        return dict.fromkeys(("log_loss", "skill", "auc", "accuracy"))
    loss = float(metrics.losses(probabilities, tipped).mean())
    both = bool(tipped.any() and not tipped.all())
    return {
        "log_loss": loss,
        "skill": metrics.skill(loss, baseline),
        "auc": float(roc_auc_score(tipped, probabilities)) if both else None,
        "accuracy": float(((probabilities > 0.5) == tipped).mean()),  # noqa: PLR2004
    }


def groups(
    rows: pa.RecordBatch, tipped: Labels, baseline: Mapping[str, Any], scores: Scores
) -> dict[str, dict[str, Any]]:
    """What `skills` says of each of the baseline's groups."""
    names, codes = rule.groups(rows, trips.grouped_by(baseline))
    of_baseline = metrics.losses(rule.probabilities(rows, baseline), tipped)
    losses = {role: losses_of(of, tipped) for role, of in usable(scores).items()}
    found = {}
    for code in np.unique(codes):
        inside = codes == code
        means = {role: float(loss[inside].mean()) for role, loss in losses.items()}
        found[names[code]] = skills(means, float(of_baseline[inside].mean()), int(inside.sum()))
    return found


def skills(means: Mapping[str, float], baseline: float, rows: int) -> dict[str, Any]:
    """Rows and both models' skill in a group, from mean log-losses; None where it is not judged, and `why`."""
    why = None
    if rows < MIN_ROWS:
        why = f"not judged: fewer than {MIN_ROWS:,} rows"
    elif baseline < metrics.NEXT_TO_NOTHING:
        why = "the baseline leaves nothing to gain"
    of_models = {role: None if why else metrics.skill(means.get(role), baseline) for role in ROLES}
    return {"rows": rows, **of_models, "why": why}


def tips(rows: pa.RecordBatch, tipped: Labels, time: str | None, scores: Probabilities | str) -> dict[str, Any] | None:
    """Calibration in the large: tips expected, and those that there were; their ratio with its 95% interval, by day.

    None where the model cannot score the rows or nothing says what a day is; a single day has no interval.
    """
    if isinstance(scores, str) or time is None:
        return None
    days = gate.places(times.days(rows[time]))
    there, expected = (np.bincount(days, values).astype(float) for values in (tipped, scores))
    found = Ratio.of(there, expected)
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
