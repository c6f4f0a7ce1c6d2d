"""The gate on real 2009: how days and months scatter, and what it says of real pairs of models.

    python docs/simulations/real_gate.py ../shared/tlc/tiny2009

prepares Arrow's 1-in-1000 sample of the trips of 2009 in a folder of its own, trains some models on its first months,
asks the gate on each later month and on all of them, and writes the table into docs/statistics.md, between its markers.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tables import replace_table

from tipline import config
from tipline.evaluation import baseline, comparison, gate, metrics
from tipline.evaluation.intervals import Ratio
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.ingest.target import parse_target
from tipline.model import artifact, pipeline
from tipline.paths import Paths
from tipline.training import sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from tipline.arrays import Codes, Floats, Probabilities

ROOT = Path(__file__).parents[2]
MONTHS = [f"2009-{month:02d}" for month in range(1, 13)]
# The first months are what the models are fitted on; none is judged on them.
FITTED = 3
ROLES = {"2009-01": "train", "2009-02": "validation"}
MODELS: dict[str, dict[str, Any]] = {
    "January": {"months": 1},
    "half of January": {"months": 1, "first": 7_000},
    "January and February": {"months": 2},
    "January to March": {"months": 3},
    "gradient boosting, January": {"months": 1, "estimator": "hist_gradient_boosting", "params": {}},
}
PAIRS = (
    ("half of January", "January"),
    ("January and February", "January"),
    ("January to March", "January"),
    ("January to March", "January and February"),
    ("gradient boosting, January", "January"),
)
HEADER = (
    "challenger",
    "champion",
    "gain, April to December",
    "a day's scatter",
    "of it from its rows",
    "correlation with the day before",
    "between months",
    "passes, of 9 months",
    "of all 9, by month",
)


def main() -> None:
    """Train, judge, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("months", type=Path, help="folder of yellow_2009-MM.parquet")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "statistics.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = project(Path(folder), given.months.resolve())
        settings = config.load_settings(paths.params)
        spec = pipeline.create_spec(settings, load_schema(paths.root / settings.schema_))
        rows = sampling.read_role(settings, paths, "test", columns.list_needed_columns(spec))
        scores = {name: scored(settings, paths, spec, rows, **choice) for name, choice in MODELS.items()}
        spec["baseline"] = rule(settings, pool(paths, spec, 1))
        lines = [line(settings, rows, spec, scores, *pair) for pair in PAIRS]
    table = [HEADER, ["---"] * 2 + ["---:"] * (len(HEADER) - 2), *lines]
    replace_table(given.into, "real", "\n".join(f"| {' | '.join(row)} |" for row in table))


def project(folder: Path, months: Path) -> Paths:
    """A project in which the real months are prepared and sampled: all rows of each."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {"months": MONTHS, "source": f"{months}/yellow_{{month}}.parquet"}
    values["schema"] = str(ROOT / values["schema"])
    values["sample"] |= {"rows": 20_000, "months": dict.fromkeys(MONTHS, "test") | ROLES}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    for name in ("dvc.yaml", "features.py"):
        shutil.copyfile(ROOT / name, folder / name)
    paths = Paths(folder)
    settings = config.load_settings(paths.params)
    for stage in ("download", "prepare", "sample"):
        for month in MONTHS:
            importlib.import_module(f"tipline.stages.{stage}").run(settings, paths, month)
    return paths


def pool(paths: Paths, spec: Mapping[str, Any], months: int) -> pa.RecordBatch:
    """The rows of the first months."""
    found = [paths.sample(ROLES.get(month, "test"), month) for month in MONTHS[:months]]
    table = columns.add_missing_columns(sampling.read_pool(found), columns.list_needed_columns(spec)).combine_chunks()
    known = parse_target(spec["target"]).evaluate(table).is_valid()
    return table.filter(known).combine_chunks().to_batches()[0]


def rule(settings: config.Settings, rows: pa.RecordBatch) -> dict[str, Any]:
    """The baseline of a training sample."""
    return baseline.fit_baseline(rows, settings.model.target, settings.evaluate.baseline)


def scored(
    settings: config.Settings,
    paths: Paths,
    spec: Mapping[str, Any],
    rows: pa.RecordBatch,
    months: int,
    first: int | None = None,
    **of_train: Any,  # noqa: ANN401 (whatever the estimator takes)
) -> Probabilities:
    """Fit on the first rows of the first months, score the rows to be judged on."""
    sample = pool(paths, spec, months).slice(0, first)
    labels, _ = metrics.read_labels(sample, settings.model.target)
    chosen = settings.model_copy(update={"train": settings.train.model_copy(update=of_train)})
    frame, judged = (artifact.read_frame(each, spec["inputs"]) for each in (sample, rows))
    schema = load_schema(paths.root / settings.schema_)
    built = pipeline.build_pipeline(chosen, schema, paths.root, frame)
    fitted = pipeline.fit_pipeline(built.pipeline, frame, labels)
    scores: Probabilities = fitted.predict_proba(judged)[:, 1].astype(np.float32)
    return scores


def line(
    settings: config.Settings,
    rows: pa.RecordBatch,
    spec: Mapping[str, Any],
    scores: Mapping[str, Probabilities],
    challenger: str,
    champion: str,
) -> list[str]:
    """What the months say of one pair."""
    pair = {"challenger": scores[challenger], "champion": scores[champion]}
    labels, _ = metrics.read_labels(rows, settings.model.target)
    probabilities = pair | {"baseline": baseline.predict_baseline(rows, spec["baseline"])}
    losses = {name: metrics.compute_log_loss(values, labels) for name, values in probabilities.items()}
    groups = comparison.group_segments(settings, rows, spec["time"])
    judged = comparison.build_gate_rows(settings, rows, spec["time"], losses, groups)
    judged = judged.select(judged.month >= judged.names.index(MONTHS[FITTED]))
    verdict = decide(judged, settings)
    months = [judged.select(judged.month == month) for month in np.unique(judged.month)]
    passed = [decide(one, settings)["promote"] for one in months]
    bounds = f"{verdict['gain']['value']:+.4f} ({verdict['gain']['lower']:+.4f} to {verdict['gain']['upper']:+.4f})"
    scatter = [f"{value:.4f}" for value in (*of_days(judged), between(months))]
    scatter.insert(2, f"{correlation(judged):+.2f}")
    return [challenger, champion, bounds, *scatter, f"{sum(passed)}", "passes" if verdict["promote"] else "refused"]


def decide(rows: gate.Rows, settings: config.Settings) -> dict[str, Any]:
    """Ask the gate."""
    made_on = {role: {"train": MONTHS[:FITTED]} for role in comparison.ROLES}
    return gate.decide_promotion(rows, made_on, settings.evaluate.tolerance, settings.evaluate.segment_tolerance)


def sums(rows: gate.Rows, codes: Codes) -> tuple[Floats, Floats]:
    """Sums of gain and baseline by block."""
    codes = metrics.rank_values(codes)
    gains, units = (np.bincount(codes, weights).astype(float) for weights in (rows.gain, rows.baseline))
    return gains, units


def residuals(rows: gate.Rows) -> Floats:
    """Each day's gain less that of all days, in skill points of a mean day."""
    gains, units = sums(rows, rows.days)
    left: Floats = (gains - gains.sum() / units.sum() * units) / units.mean()
    return left


def of_days(rows: gate.Rows) -> tuple[float, float]:
    """The standard deviation of a day's gain, and what it would be if rows were independent."""
    _, counts = np.unique(rows.days, return_counts=True)
    return float(residuals(rows).std()), float(rows.gain.std() / rows.baseline.mean() / np.sqrt(counts.mean()))


def correlation(rows: gate.Rows) -> float:
    """The correlation of a day's gain with that of the day before."""
    left = residuals(rows)
    return float(left[1:] @ left[:-1] / (left @ left))


def between(months: Sequence[gate.Rows]) -> float:
    """The standard deviation of the months' true gains: of the gains seen, less the part that their days explain."""
    seen = [Ratio.estimate(*sums(one, one.days), are_days=False) for one in months]
    variance = float(np.var([one.value for one in seen], ddof=1) - np.mean([one.error**2 for one in seen]))
    return math.sqrt(max(variance, 0.0))


if __name__ == "__main__":
    main()
