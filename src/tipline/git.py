"""Ask git about the project: the revision that results are recorded with, and what is not committed."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# A run itself rewrites dvc.lock, so a change of it says nothing about what the run was made with.
IGNORED_CHANGES = (":/", ":(top,exclude,glob)**/dvc.lock")


def get_revision() -> str:
    """Return the commit, with `-dirty` if code or settings differ from it, or `unknown` without git or a commit."""
    commit = (run_git("rev-parse", "--verify", "HEAD") or "").strip()
    changed = commit and run_git("status", "--porcelain", "--untracked-files=no", "--", *IGNORED_CHANGES)
    return f"{commit}-dirty" if changed else commit or "unknown"


def list_uncommitted(root: Path, names: Sequence[str]) -> list[str]:
    """Return those of the files that differ from the last commit; none without git."""
    output = run_git("status", "--porcelain", "--untracked-files=all", "--", *names, root=root) or ""
    # git prints paths from the root of the repository, and the project may be a subfolder of it.
    return [name for name in names if any(line.endswith(name) for line in output.splitlines())]


def is_committed(data: bytes) -> bool:
    """Whether a file with these bytes is in the history of HEAD, or of a DVC experiment, under any name."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    revisions = ("HEAD", "--glob=refs/exps")
    return bool(run_git("log", "--format=%H", "--max-count=1", f"--find-object={blob}", *revisions))


def run_git(*arguments: str, root: Path | None = None) -> str | None:
    """Return what a git command prints, or None without git or outside a repository."""
    command = shutil.which("git")
    if command is None:
        return None
    result = subprocess.run([command, *arguments], cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    return None if result.returncode else result.stdout
