"""Score one block on a dask worker."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.cluster import WorkerPlugin, get_worker
from tipline.errors import TiplineError
from tipline.ingest import columns
from tipline.model import artifact, golden_rows
from tipline.monitoring.counts import Counts
from tipline.scoring.plan import SCHEMA, Block, Locations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tipline.cluster import Client, Worker
    from tipline.model.artifact import Model

log = logging.getLogger(__name__)


def plugin_name(digest: str) -> str:
    """A scheduler may serve several projects at once: each model has its own name there."""
    return f"tipline-model-{digest}"


class ModelPlugin(WorkerPlugin):
    """Carries the model's files to each worker and loads them there once, also after a worker's restart.

    The model's canary rows are scored before anything else. Where they come out otherwise than where the model was
    made, or the model cannot be loaded, every block that the worker is given is refused.
    """

    def __init__(self, contents: Mapping[str, bytes], digest: str) -> None:
        self.name = plugin_name(digest)
        self.contents = dict(contents)
        self.digest = digest
        self.model: Model | None = None
        self.refusal: TiplineError | None = None
        self.canary = 0

    def setup(self, worker: Worker) -> None:
        """Check the digest, load, score the canary."""
        try:
            self.model = artifact.load_model(self.contents, self.digest)
            self.canary = golden_rows.check_golden_rows(self.model, worker.address)
        except TiplineError as error:
            self.refusal = error

    def ready(self) -> Model:
        """The model.

        Raises
        ------
        TiplineError
            Where this worker must not score.
        """
        if self.refusal is not None or self.model is None:
            raise self.refusal or TiplineError("The model is not loaded.", self.name, "Run it again.")
        return self.model

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the loaded model."""
        return {**self.__dict__, "model": None, "refusal": None}


def send_model(client: Client, contents: Mapping[str, bytes], digest: str) -> None:
    """Load the model on all workers.

    Raises
    ------
    TiplineError
        Where one of them cannot load it, or scores the canary rows differently.
    """
    client.register_plugin(ModelPlugin(contents, digest))
    if any(client.run(check_golden_rows_here, plugin_name(digest)).values()):
        log.warning(
            "the model's canary rows come out one float32 step from where it was trained: other hardware or libraries"
        )


def check_access(client: Client, locations: Locations) -> None:
    """Let every worker find out whether it can use the locations."""
    client.run(check_access_here, locations)


def check_access_here(locations: Locations, dask_worker: Worker) -> None:
    """Find out whether this worker can use the locations."""
    for used in (locations.trips, locations.staged):
        try:
            used.check_access()
        except TiplineError as error:
            what, where, todo = error.parts
            raise TiplineError(what, f"{where}, from the worker at {dask_worker.address}", todo) from error


def check_golden_rows_here(name: str, dask_worker: Worker) -> int:
    """How a worker's canary rows came out."""
    plugin = cast("ModelPlugin", dask_worker.plugins[name])
    plugin.ready()
    return plugin.canary


def get_worker_model(digest: str) -> Model:
    """A model on the worker that runs the task."""
    return cast("ModelPlugin", get_worker().plugins[plugin_name(digest)]).ready()


@contextlib.contextmanager
def time_phase(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time of the block to a phase."""
    started = time.perf_counter()
    yield
    seconds[phase] = round(seconds.get(phase, 0.0) + time.perf_counter() - started, 6)


def score_block(block: Block) -> dict[str, Any]:
    """Score one block on a worker: write the part, then its marker; return the marker.

    Returns
    -------
    dict
        key, name, rows, bytes and sha256 of the part, counts, seconds by phase, peak_bytes of the worker.
    """
    model, seconds = get_worker_model(block.model), dict[str, float]()
    with time_phase(seconds, "read"):
        batch = read_block(block, columns.list_needed_columns(model.spec))
    with time_phase(seconds, "score"):
        scores = model.probabilities(batch)
    with time_phase(seconds, "count"):
        counts = Counts.from_rows(batch, model.spec, scores, block.month)
    with time_phase(seconds, "write"):
        # Not `pa.array`, which imports pandas first.
        data = encode_part(batch["row"], pa.Array.from_buffers(pa.float32(), len(scores), [None, pa.py_buffer(scores)]))
        block.locations.staged.write(block.part, data)
    made = {
        "key": block.key,
        "state": block.state,
        "name": block.name,
        "rows": len(batch),
        "bytes": len(data),
        "sha256": files.hash_bytes(data),
        "counts": counts.to_json(),
        "seconds": seconds,
        "peak_bytes": cluster.get_peak_memory(),
    }
    block.locations.staged.write(block.marker, json.dumps(made).encode())
    return made


def read_block(block: Block, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Row numbers and these columns of a block, as one batch: each column has one dictionary then."""
    names = ["row", *types]
    table = block.locations.trips.read_row_group(block.trips, block.row_group, names, block.state)
    table = columns.add_missing_columns(table, types).select(names).combine_chunks()
    batches = table.to_batches(max_chunksize=len(table) or 1)
    # An empty table has no batch. Not made before it is known: `from_pylist` imports pandas, half a second.
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def encode_part(rows: pa.Array, scores: pa.Array) -> pa.Buffer:
    """A part's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([rows, scores], schema=SCHEMA),
        sink,
        compression="lz4",
        use_dictionary=False,
        column_encoding={"row": "DELTA_BINARY_PACKED", "tip_probability": "PLAIN"},
        row_group_size=len(scores) or 1,
    )
    return sink.getvalue()
