"""Imported by the forkserver: loads a champion that kernels are going to score, before workers are forked from it.

The workers share the imported libraries and the compiled kernels, and only one process compiles these. Workers load
all other models themselves, and report what is wrong with this one.
"""

import contextlib
import os

from tipline import files
from tipline.model import artifact, golden_rows, pyfunc
from tipline.paths import Paths, find_project

MIN_ROWS = 2_000_000


def load_champion(paths: Paths) -> None:
    """Load the champion if it is not linear and many prepared rows have no predictions of it yet."""
    contents, spec = artifact.read_artifact(paths.champion), files.try_read_json(paths.champion / pyfunc.SPEC)
    digest, rows = files.try_read_json(paths.champion_ref)["digest"], 0
    for path in paths.trips.glob(f"month=*/{files.MANIFEST}"):
        scored = files.try_read_json(paths.predictions / path.parent.name / files.MANIFEST)
        if not scored or scored["key"]["model"] != digest:
            rows += files.try_read_json(path)["rows_out"]
    if rows >= MIN_ROWS and pyfunc.ESTIMATOR in contents and not spec["linear"]:
        model = artifact.load_model(contents, digest, rows=rows // (os.cpu_count() or 1))
        if model.form == artifact.KERNELS:  # nothing else may run here: threads of OpenMP do not survive a fork
            golden_rows.count_steps(model)


with contextlib.suppress(Exception):  # whatever the code in a model raises: workers report it
    load_champion(find_project())
