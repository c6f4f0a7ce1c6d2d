"""`tipline month`: the month's routine, from whether it is published to what is to be committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tipline import files, git
from tipline.commands import checks
from tipline.errors import TiplineError, UsageError
from tipline.ingest import source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tipline.config import Settings
    from tipline.paths import Paths


def run(settings: Settings, paths: Paths, month: str) -> Iterator[str]:
    """Add a month that is published to params.yaml, let `dvc repro` do the rest; say its verdict and what to commit.

    A month that is there already is gone on with: after any end of an earlier run this is the way on.

    Raises
    ------
    NotPublishedError
        Where the source does not have the month; nothing is changed then.
    UsageError
        Where its line cannot be added to `months`.
    TiplineError
        Where the source cannot be asked, or `dvc repro` fails.
    """
    if not paths.raw_manifest(month).is_file():
        source.check_published(settings.source, month, paths.workspace)
    if month in settings.months:
        yield f"{month} is in params.yaml"
    else:
        files.write_text(paths.params, with_month(paths.params.read_bytes().decode(), month, str(paths.params)))
        yield f"{month} is published, and in params.yaml now"
    repro(paths, month)
    yield verdict(paths, month)
    yield from to_commit(paths, month)


def with_month(text: str, month: str, where: str) -> str:
    """params.yaml with a month's line after the last one before it; all else stays, letter by letter.

    Raises
    ------
    UsageError
        Where `months` is no list of a line a month.
    """
    months = yaml.safe_load(text)["months"]
    earlier = [number for number, other in enumerate(months) if other < month]
    place = earlier[-1] + 1 if earlier else 0
    wanted = yaml.safe_load(text) | {"months": [*months[:place], month, *months[place:]]}
    changed = inserted(text, month, place)
    try:
        if changed is not None and yaml.safe_load(changed) == wanted:
            return changed
    except yaml.YAMLError:
        pass
    what = f"The list `months` has not a line a month, so {month} is not added to it."
    raise UsageError(what, where, f'Add it yourself, as - "{month}" or in the way of the others; then run it again.')


def inserted(text: str, month: str, place: int) -> str | None:
    """The text with one more line, made like its neighbour's; None of a list in another form."""
    document = yaml.compose(text, yaml.SafeLoader)
    pairs: list[tuple[yaml.Node, yaml.Node]] = document.value if document else []
    neighbour = next(value for key, value in pairs if key.value == "months").value[max(place - 1, 0)]
    lines = text.splitlines(keepends=True)
    line, start = lines[neighbour.start_mark.line], neighbour.start_mark.column
    if line[:start].strip() != "-":
        return None
    quote = neighbour.style or ""
    ending = line[len(line.rstrip("\r\n")) :] or "\n"
    lines[neighbour.start_mark.line] = line.rstrip("\r\n") + ending
    lines.insert(neighbour.start_mark.line + bool(place), f"{line[:start]}{quote}{month}{quote}{ending}")
    return "".join(lines)


def repro(paths: Paths, month: str) -> None:
    """Run `dvc repro`, which prints where the month is."""
    # The stages are plain `tipline ...`: cron has not activated this environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "dvc", "repro"]
    process = subprocess.Popen(command, cwd=paths.root, env={**os.environ, "PATH": path})  # noqa: S603 (fixed)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has told DVC, too, which ends its stage first
        raise
    if code:
        todo = f"The reason stands above. Mend it, then go on: tipline month {month}"
        raise TiplineError("`dvc repro` did not end well.", f"month {month}", todo)


def verdict(paths: Paths, month: str) -> str:
    """A month's rows, skill, and whether its scores can be trusted."""
    months = files.read_json(paths.monitoring / "months.json", "Run: dvc repro monitor")
    judged = next(one for one in months if one["month"] == month)
    skill = "no skill known" if judged["skill"] is None else f"skill {judged['skill']:.4f}"
    return f"{month}: {judged['rows']:,} rows, {skill}, {judged['verdict']}: {judged['reason']}"


def to_commit(paths: Paths, month: str) -> Iterator[str]:
    """The commands that keep and share what has changed."""
    changed = git.list_uncommitted(paths.root, checks.COMMITTED)
    if changed is None:
        yield "no git here: nothing to commit"
        return
    if changed:
        yield "to commit:"
        yield f"  git add {' '.join(changed)}"
        yield f'  git commit -m "Score {month}"'
    else:
        yield "nothing to commit"
    if git.has_remote(paths.root):
        yield "  git push"
    if checks.get_dvc_remote(paths.root):
        yield "  dvc push"
