"""Ask git about the project: the revision that results are recorded with, and which files it knows."""

import hashlib
import shutil
import subprocess

# A run itself rewrites dvc.lock, so a change of it says nothing about what the run was made with.
IGNORED_CHANGES = (":/", ":(top,exclude,glob)**/dvc.lock")


def get_revision() -> str:
    """Return the commit, with `-dirty` if code or settings differ from it, or `unknown` without git or a commit."""
    commit = (run_git("rev-parse", "--verify", "HEAD") or "").strip()
    changed = commit and run_git("status", "--porcelain", "--untracked-files=no", "--", *IGNORED_CHANGES)
    return f"{commit}-dirty" if changed else commit or "unknown"


def is_committed(data: bytes) -> bool:
    """Whether a file with these bytes is in the history of HEAD, or of a DVC experiment, under any name."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return bool(run_git("log", "--format=%H", "--max-count=1", f"--find-object={blob}", "HEAD", "--glob=refs/exps"))


def run_git(*arguments: str) -> str | None:
    """Return what a git command prints, or None without git or outside a repository."""
    command = shutil.which("git")
    if command is None:
        return None
    result = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    return None if result.returncode else result.stdout
