"""register: the challenger as a run and a version in MLflow, and the champion's files in models/champion/.

Runs at every `dvc repro`, because DVC cannot see that an alias was moved or a store was lost. What exists is not
created again, and a database that did not change is not opened.
"""

import logging

from tipline import files
from tipline.config import Settings
from tipline.paths import Paths
from tipline.registry import location

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    known, ref = files.try_read_json(paths.registered), files.try_read_json(paths.champion_ref)
    if known and ref and known["state"] == location.describe_state(settings, paths):
        log.info("MLflow's database and the models are unchanged; champion: version %s", ref["version"])
        return
    # Before tipline.registry: beside MLflow it would import pandas and MLflow's models.
    from tipline.model import artifact  # noqa: F401, PLC0415
    from tipline.registry import mirror  # noqa: PLC0415 (two seconds)

    mirror.update_registry(settings, paths)
