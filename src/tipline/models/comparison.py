"""Two models, given as files, scored on the `evaluate` months: the report on them and the gate's verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline import files, pyfunc
from tipline.errors import TiplineError, one_line
from tipline.models import foreign, modelfiles, sampling
from tipline.months import trips
from tipline.statistics import evaluation, gate
from tipline.statistics.evaluation import Compared

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings
    from tipline.pyfunc import Probabilities
    from tipline.statistics.gate import MadeOn

FAILURES = (TiplineError, *foreign.FAILURES)
SAME = "The challenger is the champion: there is nothing to promote."


def specs_of(contents: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, Any]]:
    """The model.json of each model."""
    return {role: json.loads(of_model[pyfunc.SPEC]) for role, of_model in contents.items()}


def compare(
    settings: Settings, layout: Layout, contents: Mapping[str, Mapping[str, bytes]], made_on: MadeOn
) -> tuple[dict[str, Any], Compared]:
    """The report on `challenger` and `champion`, given as files, with the gate's verdict; and what it is made from.

    Raises
    ------
    TiplineError
        Where no row of the months has a known target, or a sample is missing.
    """
    specs = specs_of(contents)
    types = {name: type_ for spec in specs.values() for name, type_ in trips.needed(spec).items()}
    types |= dict.fromkeys(settings.evaluate.segments, trips.CATEGORY)
    rows = sampling.by_month(settings, layout, "evaluate", types)
    scores = {role: scored(of_model, rows) for role, of_model in contents.items()}
    compared = Compared(rows, settings.model.target, specs, scores)
    made = made_from(settings, layout, {role: modelfiles.digest(of_model) for role, of_model in contents.items()})
    same = made["challenger"] == made["champion"]
    verdict = gate.refused([SAME]) | {"words": SAME} if same else judged(settings, compared, made_on)
    months = settings.sample.of("evaluate")
    return {"months": months, **evaluation.report(compared), "gate": verdict, "made": made}, compared


def made_from(settings: Settings, layout: Layout, digests: Mapping[str, str]) -> dict[str, str]:
    """What a verdict is of: the digests of both models, of the rows and of the settings."""
    samples = sampling.paths(settings, layout, "evaluate")
    rows = files.digest_of({path.stem: files.sha256(path) for path in samples})
    limits = files.digest_of([gate.RULE, settings.evaluate.model_dump(), settings.model.target])
    return {**digests, "rows": rows, "settings": limits}


def scored(contents: Mapping[str, bytes], rows: pa.RecordBatch) -> Probabilities | str:
    """A model's scores of the rows, or why it cannot score them."""
    try:
        scores = modelfiles.load(contents, modelfiles.digest(contents)).probabilities(rows)
    except FAILURES as error:
        return one_line(error)
    return scores if np.isfinite(scores).all() else "it gives scores that are no number"


def judged(settings: Settings, compared: Compared, made_on: MadeOn) -> dict[str, Any]:
    """The gate's verdict on two different models."""
    if reasons := list(evaluation.incomparable(compared)):
        return gate.refused(reasons)
    limits, place = settings.evaluate, compared.rows[sampling.MONTH].to_numpy()
    rows = evaluation.gate_rows(compared, settings.sample.of("evaluate"), place, limits.segments)
    return gate.decide(rows, made_on, limits.tolerance, limits.segment_tolerance)
