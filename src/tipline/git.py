"""What git says of the project: the revision that results are recorded with, and what is not committed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


# What a run itself writes and git tracks: it says nothing of what the run was made with.
BUT_FOR_RESULTS = (":/", ":(top,exclude,glob)**/dvc.lock", ":(top,exclude,glob)**/models/promotions.jsonl")


def get_revision() -> str:
    """The commit, `-dirty` behind it where code or settings differ from it; `unknown` without git or a commit."""
    commit = (run_git("rev-parse", "--verify", "HEAD") or "").strip()
    changed = commit and run_git("status", "--porcelain", "--untracked-files=no", "--", *BUT_FOR_RESULTS)
    return f"{commit}-dirty" if changed else commit or "unknown"


def list_uncommitted(root: Path, names: Sequence[str]) -> list[str] | None:
    """Those of the files that are not as the last commit has them; None without git."""
    told = run_git("status", "--porcelain", "--untracked-files=all", "--", *names, root=root)
    # The project need not be the repository's root, which the paths start at.
    return None if told is None else [name for name in names if any(line.endswith(name) for line in told.splitlines())]


def has_remote(root: Path) -> bool:
    """Whether there is somewhere to push to."""
    return bool(run_git("remote", root=root))


def run_git(*arguments: str, root: Path | None = None) -> str | None:
    """What git prints, None without git or a repository."""
    command = shutil.which("git")
    if command is None:
        return None
    found = subprocess.run([command, *arguments], cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    return None if found.returncode else found.stdout
