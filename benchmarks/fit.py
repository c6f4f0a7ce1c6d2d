"""What it costs to fit the seed's model on as many rows as the post did, beside the post's own pipeline.

Usage: python benchmarks/fit.py [--folder F] [--rows N]

A simulated month is prepared once, in the folder. Each case is a process of its own; it is given the rows in a random
order, as a sample has them, and its time is from there to the fitted model. "tipline" is what `tipline train` does;
"scikit-learn" fits the same pipeline at once, with the solver that is its default; "the post" has the post's
transformers on pandas, and the same default. Memory is the most that the process held; loading is over by then.
Printed, and written to reports/benchmarks/fit.md, with the profile of a further run of tipline's.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import the_post

from tipline import config
from tipline.evaluation import metrics
from tipline.ingest import prepare, simulate
from tipline.ingest.schema import load_schema
from tipline.model import artifact, compiled, pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from tipline.arrays import Floats

ROOT = Path(__file__).parent.parent
MONTH = "2009-01"
THE_POSTS_ROWS = 10_569_309
LINES = 12
SETTINGS = config.load_settings(ROOT / "params.yaml")
TARGET = SETTINGS.model.target
Fitted = tuple[float, "Callable[[], Floats]"]


def get_peak_memory() -> int:
    """Return the most memory that this process ever held; `ru_maxrss` would count what its parent held, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def rows(path: Path, count: int) -> pa.RecordBatch:
    """The first rows of the month, in a random order."""
    file = pq.ParquetFile(path)
    group_rows = file.metadata.row_group(0).num_rows
    table = file.read_row_groups(range(-(-count // group_rows)), columns=[*SETTINGS.model.columns, TARGET])
    order = np.random.default_rng(0).permutation(count)
    return table.unify_dictionaries().combine_chunks().take(order).to_batches()[0]


def tipline(trips: pa.RecordBatch, **parameters: str) -> Fitted:
    started = time.perf_counter()
    schema, labels = load_schema(), metrics.read_labels(trips, TARGET)[0]
    train = SETTINGS.train.model_copy(update={"params": {**SETTINGS.train.params, **parameters}})
    settings = SETTINGS.model_copy(update={"train": train})
    frame = artifact.read_frame(trips, pipeline.create_spec(settings, schema)["inputs"])
    built = pipeline.build_pipeline(settings, schema, ROOT, frame)
    linear = compiled.fold_pipeline(pipeline.fit_pipeline(built.pipeline, frame, labels))
    seconds = time.perf_counter() - started
    return seconds, lambda: scored(trips, linear or {})


def scored(trips: pa.RecordBatch, linear: dict[str, Any]) -> Floats:
    scores = np.empty(len(trips))
    for of, some in compiled.compute_probabilities(trips, linear):
        scores[of] = some
    return scores


def scikit_learn(trips: pa.RecordBatch) -> Fitted:
    return tipline(trips, solver="lbfgs")


def post(trips: pa.RecordBatch) -> Fitted:
    names = dict(zip(SETTINGS.model.columns, the_post.COLUMNS, strict=True))
    frame = trips.select(list(names)).to_pandas().rename(columns=names)
    labels, _ = metrics.read_labels(trips, TARGET)
    started = time.perf_counter()
    fitted = the_post.pipeline().fit(frame, labels)
    seconds = time.perf_counter() - started
    return seconds, lambda: fitted.predict_proba(frame)[:, 1]


CASES: dict[str, Callable[[pa.RecordBatch], Fitted]] = {
    "tipline": tipline,
    "scikit-learn": scikit_learn,
    "the post": post,
}


def measure(case: str, path: Path, count: int) -> dict[str, Any]:
    """Run one case in this process; the peak is taken before the rows are scored."""
    trips = rows(path, count)
    loaded = get_peak_memory()
    seconds, score = CASES[case](trips)
    peak, scores = get_peak_memory(), score()
    labels, _ = metrics.read_labels(trips, TARGET)
    loss = float(metrics.compute_log_loss(scores, labels).mean())
    return {
        "seconds": seconds,
        "peak": peak,
        "loaded": loaded,
        "accuracy": float(((scores > 0.5) == labels).mean()),  # noqa: PLR2004 (even odds)
        "loss": loss,
    }


def profiled(path: Path, count: int) -> list[str]:
    """The functions that take most of the time, as a table."""
    trips, profile = rows(path, count), cProfile.Profile()
    profile.runcall(tipline, trips)
    stats: Any = pstats.Stats(profile)
    entries = sorted(stats.stats.items(), key=lambda entry: -entry[1][2])[:LINES]
    lines = ["| function | calls | own s | with what it calls, s |", "|:--|--:|--:|--:|"]
    for (file, line, name), (_, calls, own, whole, _) in entries:
        where = f"{Path(file).name}:{line}" if line else ""
        lines.append(f"| {name} {where} | {calls:,} | {own:.2f} | {whole:.2f} |")
    return lines


def in_a_process(case: str, path: Path, count: int) -> Any:  # noqa: ANN401 (json)
    """What `measure` or `profiled` tells, from a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--folder", str(path.parent), "--rows", str(count)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(told: dict[str, dict[str, Any]], profile: list[str], count: int) -> str:
    """The page."""
    lines = [f"# Fitting the seed's model on {count:,} rows", ""]
    lines += ["| | seconds | times tipline's | peak, GB | accuracy | log-loss |", "|:--|--:|--:|--:|--:|--:|"]
    for case, of in told.items():
        ratio = of["seconds"] / told["tipline"]["seconds"]
        figures = (
            f"{of['seconds']:.1f} | {ratio:.1f} | {of['peak'] / 1e9:.2f} | {of['accuracy']:.4f} | {of['loss']:.6f}"
        )
        lines.append(f"| {case} | {figures} |")
    loaded = told["tipline"]["loaded"] / 1e9
    lines += ["", f"The post: 67 s, accuracy 0.9931. Loading the rows alone takes {loaded:.2f} GB at its peak.", ""]
    return "\n".join([*lines, "## Profile of tipline's", "", *profile, ""])


def made(path: Path, count: int) -> None:
    """Simulate and prepare the month, unless the folder has it."""
    if path.is_file() and pq.ParquetFile(path).metadata.num_rows >= count:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "raw.parquet"
        simulate.simulate_month(raw, MONTH, count, seed=SETTINGS.demo.seed)
        prepare.prepare_month(raw, path.parent, load_schema(), MONTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tipline-fit")
    parser.add_argument("--rows", type=int, default=THE_POSTS_ROWS)
    parser.add_argument("--case", choices=[*CASES, "profile"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / "trips.parquet"
    if options.case:
        run = profiled if options.case == "profile" else lambda *of: measure(options.case, *of)
        print(json.dumps(run(path, options.rows)))
        return
    made(path, options.rows)
    told = {case: in_a_process(case, path, options.rows) for case in CASES}
    page = report(told, in_a_process("profile", path, options.rows), options.rows)
    print(page)
    target = ROOT / "reports" / "benchmarks" / "fit.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page)


if __name__ == "__main__":
    main()
