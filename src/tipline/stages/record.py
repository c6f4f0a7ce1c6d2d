"""record: learning curve, evaluation and months in MLflow, each once, and the cards of challenger and champion."""

import logging

from tipline import files
from tipline.config import Settings
from tipline.errors import format_count
from tipline.model import artifact  # noqa: F401 (before tipline.registry, see register)
from tipline.paths import Paths
from tipline.registry import mirror, store

log = logging.getLogger(__name__)

NO_ACCESS = "new results were not logged. Ask someone with access to run `dvc repro -f record`."


def run(settings: Settings, paths: Paths) -> None:
    recorded = 0
    with store.connect_store(paths) as client, store.lock_store(paths), store.skip_if_forbidden(NO_ACCESS):
        recorded = mirror.record_reports(client, settings, paths)
        mirror.keep_state(client, settings, paths)
        log.info("MLflow has the learning curve, the evaluation and %s", format_count(recorded, "month"))
    files.write_json(paths.recorded, {"months": recorded})
