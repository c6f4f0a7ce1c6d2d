"""Two models, given as files, scored on the `test` months: the report on them and the gate's verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline import files
from tipline.errors import TiplineError, join_lines
from tipline.evaluation import gate, report
from tipline.evaluation.report import Compared
from tipline.ingest import columns
from tipline.model import artifact, external, pyfunc
from tipline.training import sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tipline.config import Settings
    from tipline.evaluation.gate import MadeOn
    from tipline.model.pyfunc import Probabilities
    from tipline.paths import Paths

FAILURES = (TiplineError, *external.FAILURES)
SAME = "The challenger is the champion: there is nothing to promote."


def load_specs(contents: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, Any]]:
    """The model.json of each model."""
    return {role: json.loads(of_model[pyfunc.SPEC]) for role, of_model in contents.items()}


def compare_models(
    settings: Settings, paths: Paths, contents: Mapping[str, Mapping[str, bytes]], made_on: MadeOn
) -> tuple[dict[str, Any], Compared]:
    """The report on `challenger` and `champion`, given as files, with the gate's verdict; and what it is made from.

    Raises
    ------
    TiplineError
        Where no row of the months has a known target, or a sample is missing.
    """
    specs = load_specs(contents)
    types = {name: type_ for spec in specs.values() for name, type_ in columns.list_needed_columns(spec).items()}
    types |= dict.fromkeys(settings.evaluate.segments, columns.CATEGORY)
    rows = sampling.read_role_by_month(settings, paths, "test", types)
    scores = {role: scored(of_model, rows) for role, of_model in contents.items()}
    compared = Compared(rows, settings.model.target, specs, scores)
    made = hash_inputs(settings, paths, {role: artifact.hash_artifact(of_model) for role, of_model in contents.items()})
    same = made["challenger"] == made["champion"]
    verdict = gate.build_refusal([SAME]) | {"words": SAME} if same else judged(settings, compared, made_on)
    months = settings.sample.get_months("test")
    return {"months": months, **report.build_report(compared), "gate": verdict, "made": made}, compared


def hash_inputs(settings: Settings, paths: Paths, digests: Mapping[str, str]) -> dict[str, str]:
    """What a verdict is of: the digests of both models, of the rows and of the settings."""
    samples = sampling.list_samples(settings, paths, "test")
    rows = files.hash_json({path.stem: files.hash_file(path) for path in samples})
    limits = files.hash_json([gate.RULE, settings.evaluate.model_dump(), settings.model.target])
    return {**digests, "rows": rows, "settings": limits}


def scored(contents: Mapping[str, bytes], rows: pa.RecordBatch) -> Probabilities | str:
    """A model's scores of the rows, or why it cannot score them."""
    try:
        scores = artifact.load_model(contents, artifact.hash_artifact(contents)).probabilities(rows)
    except FAILURES as error:
        return join_lines(error)
    return scores if np.isfinite(scores).all() else "it gives scores that are no number"


def judged(settings: Settings, compared: Compared, made_on: MadeOn) -> dict[str, Any]:
    """The gate's verdict on two different models."""
    if reasons := list(report.find_obstacles(compared)):
        return gate.build_refusal(reasons)
    limits, place = settings.evaluate, compared.rows[sampling.MONTH].to_numpy()
    rows = report.build_gate_rows(compared, settings.sample.get_months("test"), place, limits.segments)
    return gate.decide_promotion(rows, made_on, limits.tolerance, limits.segment_tolerance)
