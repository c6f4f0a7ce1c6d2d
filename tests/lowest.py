"""A project's life in short, as `make lowest` runs it with the lowest versions of the dependencies that are allowed.

Not collected by `make test`, whose tests do all of this and more with the versions of the lock.
"""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests import stories


def test_all_stages_run_and_status_has_no_complaint(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    story = stories.copy_first(request.getfixturevalue("tmp_path_factory"), tmp_path / "project")
    assert not re.search("warning|traceback", story.repros["first"].output, re.IGNORECASE), story.repros["first"].output
    trips = pd.read_parquet(story.root / "data/trips", columns=["month", "row"])
    scores = pd.read_parquet(story.root / "data/predictions")
    assert len(trips.merge(scores, on=["month", "row"], validate="one_to_one")) == len(trips) == 3 * 2000
    for command in ("verify", "status", "promote 1", "explain 2009-01 7", "compare 1 champion 2009-01"):
        done = story.run("tipline", *command.split())
        assert done.returncode == 0, done.stdout + done.stderr
    # DVC writes the value into params.yaml; study, fit and version are made anew, and the copied store is mended.
    stories.dvc(story, "exp", "run", "-S", "train.params.C=0.01")
    assert "C: 0.01" in (story.root / "params.yaml").read_text()
    stories.assert_complete(story.root)
