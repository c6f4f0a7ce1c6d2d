"""learning_curve: how many rows the model needs, studied on the `fit` months and scored on the `size` months."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

from tipline import cluster, files, pyfunc
from tipline.errors import UsageError
from tipline.models import model, sampling, sizing
from tipline.months import contract, trips
from tipline.pages import plots
from tipline.statistics import baseline, curve, metrics, times

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

# Of the `fit` rows, the last fifth is held out: rows of the same months that no repeat is fitted on.
HELD_OUT = 5
OF_SAMPLE = "raise sample.rows: a fifth is held out, half of the rest is the most"


def run(settings: Settings, layout: Layout) -> None:
    """Write the study's table, picture and decision, and models/sample_size.json."""
    spec = model.spec(settings, contract.load(layout.root / settings.contract))
    fit, size = (sampling.of_role(settings, layout, role, trips.needed(spec)) for role in ("fit", "size"))
    available = sampling.available(sampling.paths(settings, layout, "fit"))
    decision = study(settings, layout.root, spec, (fit, size), available)
    files.write_csv(layout.learning_curve, decision["sizes"])
    files.write_json(layout.learning_curve.with_suffix(".json"), decision)
    plots.learning_curve(layout.learning_curve.with_suffix(".png"), decision)
    files.write_json(layout.sample_size, {"rows": decision["rows"]})
    for words in filter(None, (decision["reason"], decision["sanity"])):
        log.info("%s", words)


def study(
    settings: Settings, root: Path, spec: dict[str, Any], rows: tuple[pa.RecordBatch, pa.RecordBatch], available: int
) -> dict[str, Any]:
    """Run the study on the project's dask client, and decide.

    Parameters
    ----------
    rows
        Those of the `fit` months and those of the `size` months.
    available
        How many the `fit` months have.
    """
    wanted, budget, (fit, size) = settings.learning_curve, settings.learning_curve.budget, rows
    pool, held_out = fit.slice(0, len(fit) - len(fit) // HELD_OUT), fit.slice(len(fit) - len(fit) // HELD_OUT)
    largest = at_least(wanted.smallest, min(len(pool) // 2, budget.rows or len(pool)), OF_SAMPLE)
    segment, parts = examples(settings, spec, {"pool": pool, "held_out": held_out, "size": size})
    orders = sizing.shuffles(parts["pool"].tipped, wanted.repeats, wanted.smallest, settings.sample.seed)
    pipeline, first = model.build(spec["features"], settings.train, root), pool.slice(0, largest)
    cost = sizing.Cost.of(pipeline, lambda: pyfunc.matrix(first, spec["features"]), parts["pool"].tipped[:largest])
    bound = curve.Bound.of(len(fit), budget, cost.bytes_a_row)
    most = at_least(wanted.smallest, min(largest, bound.rows), "raise learning_curve.budget.megabytes")
    of_sizes = sizing.sizes(wanted.smallest, most, wanted.sizes)
    with cluster.connect(settings.score.workers), joblib.parallel_config("dask"):
        made = sizing.study(pipeline, parts.pop("pool"), parts, of_sizes, orders)
    return {
        **curve.decide(made, wanted.min_gain, bound, cost.parameters),
        "budget": budget.model_dump(),
        "bytes_a_row": cost.bytes_a_row,
        "segment": segment,
        "available": available,
        "power_law": curve.extrapolation(made, available),
    }


def at_least(smallest: int, largest: int, otherwise: str) -> int:
    """The largest size to study, unless it is too small; `otherwise` is what helps then."""
    if largest >= smallest:
        return largest
    what = f"The largest sample to study has {largest:,} rows, fewer than learning_curve.smallest, {smallest:,}."
    raise UsageError(what, f"{curve.WHERE}.smallest", f"Lower it, or {otherwise}.")


def examples(
    settings: Settings, spec: dict[str, Any], parts: Mapping[str, pa.RecordBatch]
) -> tuple[str, dict[str, sizing.Examples]]:
    """The rows as the study takes them, and its segment: the baseline's group with most tips in the pool."""
    target, by = spec["target"], settings.baseline.by
    rule = baseline.fit(parts["pool"], target, by, settings.baseline.smoothing)
    groups = {name: baseline.groups(part, by) for name, part in parts.items()}
    tipped = {name: metrics.labels(part, target)[0] for name, part in parts.items()}
    names, codes = groups["pool"]
    segment = names[int(np.argmax(np.bincount(codes, tipped["pool"])))]
    return segment, {
        name: sizing.Examples(
            pyfunc.matrix(part, spec["features"]),
            tipped[name],
            times.places(times.days(part[spec["time"]])),
            np.array(groups[name][0])[groups[name][1]] == segment,
            baseline.probabilities(part, rule),
        )
        for name, part in parts.items()
    }
