"""params: the check of params.yaml that runs before all other stages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import files
from tipline.errors import UsageError, hide_secrets

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths

log = logging.getLogger(__name__)

# Taken for certain: scikit-learn, two seconds of import, need not be asked.
USUAL = ("logistic_regression", {"C"})


def run(settings: Settings, paths: Paths) -> None:
    """Write a file that is always the same: the settings are checked where they are read, the estimator here.

    Every other stage depends on the file through `download`, so a mistake in params.yaml stops `dvc repro` at once;
    and because its content never changes, no stage runs for it.

    Raises
    ------
    UsageError
        Where `source` has a password or a token in it: DVC would write it into dvc.lock; where the estimator cannot be
        made of its parameters, which would be found only once months were fetched and prepared.
    """
    if hide_secrets(settings.source) != settings.source:
        raise UsageError(
            "`source` has a password or a token in it, which DVC would write into dvc.lock, and git would keep.",
            f"{paths.params}, source",
            'Take it out: passwords go into ~/.netrc, tokens into FSSPEC_HTTP=\'{"params": {"token": "…"}}\' or '
            '\'{"headers": {"Authorization": "…"}}\', keys of S3 into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.',
        )
    check_estimator(settings, paths)
    files.write_text(paths.params_checked, "params.yaml has been checked\n")
    log.info("params.yaml: %s months from %s", len(settings.months), settings.source)


def check_estimator(settings: Settings, paths: Paths) -> None:
    """Make the estimator, and throw it away."""
    if (settings.train.estimator, set(settings.train.params)) != USUAL:
        from tipline.model import pipeline  # noqa: PLC0415 (see USUAL)

        pipeline.create_classifier(settings.train, paths.root)
