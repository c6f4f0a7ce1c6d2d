"""The git revision that results are recorded with."""

from __future__ import annotations

import shutil
import subprocess


def revision() -> str:
    """The commit, `-dirty` behind it where tracked files differ from it; `unknown` without git or a commit."""
    command = shutil.which("git")
    if command is None:
        return "unknown"
    found = subprocess.run(  # noqa: S603 (fixed arguments)
        [command, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"
