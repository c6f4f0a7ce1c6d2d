"""Values that training does not have, on Arrow's 1-in-1000 sample of the real trips.

    python docs/simulations/unseen.py ../shared/tlc/tiny2009

fits on January to March 2009, scores April as it is and with all payment types replaced by a value that training does
not have, and writes the table into docs/statistics.md, between its markers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tipline import config
from tipline.evaluation import metrics
from tipline.ingest import columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, pipeline
from tipline.paths import Paths
from tipline.stages import download, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "statistics.md"
MARKS = ("<!-- unseen -->", "<!-- /unseen -->")
TRAIN, TEST = ("2009-01", "2009-02", "2009-03"), "2009-04"
ESTIMATORS = {"logistic regression": "logistic_regression", "histogram gradient boosting": "hist_gradient_boosting"}
SHARES = (0.0, 0.01)
HEAD = (
    "| estimator | other_share | April as it is: log-loss | mean probability | payment types hidden: log-loss | "
    "mean probability |\n|---|---:|---:|---:|---:|---:|"
)


def main() -> None:
    """Prepare the months, fit each estimator with each share, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("months", type=Path, help="folder of yellow_2009-MM.parquet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [HEAD, *measure(create_project(Path(folder), arguments.months.resolve()))]
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    PAGE.write_text(before + "\n".join([MARKS[0], *lines, MARKS[1]]) + after, encoding="utf-8")


def create_project(folder: Path, months: Path) -> Paths:
    """Create a project with the real months, prepared."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {"months": [*TRAIN, TEST], "source": f"{months}/yellow_{{month}}.parquet"}
    values["schema"] = str(ROOT / values["schema"])
    values["sample"] |= {"months": dict(zip(TRAIN, ("train", "validation", "test"), strict=True))}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    (folder / "features.py").touch()
    paths = Paths(folder)
    for month in (*TRAIN, TEST):
        for stage in (download, prepare):
            stage.run(config.load_settings(paths.params), paths, month)
    return paths


def measure(paths: Paths) -> Iterator[str]:
    """Yield the lines of the table, and one with the rate of the training months."""
    settings, schema = config.load_settings(paths.params), load_schema()
    spec = pipeline.create_spec(settings, schema)
    types = columns.list_needed_columns(spec)
    train, test = (read_months(paths, months, types) for months in (TRAIN, (TEST,)))
    frame, labels = artifact.read_frame(train, spec["inputs"]), metrics.read_labels(train, spec["target"])[0]
    april, outcomes = artifact.read_frame(test, spec["inputs"]), metrics.read_labels(test, spec["target"])[0]
    for words, estimator in ESTIMATORS.items():
        for share in SHARES:
            model = settings.model.model_copy(update={"other_share": share})
            train_settings = settings.train.model_copy(update={"estimator": estimator, "params": {}})
            changed = settings.model_copy(update={"model": model, "train": train_settings})
            built = pipeline.build_pipeline(changed, schema, paths.root, frame)
            fitted: Any = pipeline.fit_pipeline(built.pipeline, frame, labels)
            cells = []
            for rows in (april, april.assign(payment_type="a new one")):
                scores = fitted.predict_proba(rows)[:, 1]
                cells += [f"{metrics.compute_log_loss(scores, outcomes).mean():.4f}", f"{scores.mean():.3f}"]
            yield f"| {words} | {share:g} | {' | '.join(cells)} |"
            print(words, share, *cells, flush=True)
    rate = float(labels.mean())
    loss = metrics.compute_log_loss(rate + 0.0 * outcomes, outcomes).mean()
    yield f"| training's rate for all rows | | {loss:.4f} | {rate:.3f} | {loss:.4f} | {rate:.3f} |"


def read_months(paths: Paths, months: tuple[str, ...], types: dict[str, pa.DataType]) -> pa.RecordBatch:
    """Return the rows of prepared months that have a known target."""
    tables = [pq.read_table(paths.prepared_file(month), columns=list(types), partitioning=None) for month in months]
    table = columns.encode_categories(pa.concat_tables(tables))
    return table.filter(pa.compute.is_valid(table["tip_amount"])).combine_chunks().to_batches()[0]


if __name__ == "__main__":
    main()
