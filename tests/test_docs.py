"""The code blocks of README and docs, run as they stand there: each page in a project of its own, from top to bottom.

A block's language says how: `sh` is a script that has to succeed, `python` too, `console` shows commands behind `$`
with what they print; numbers and digests may be others, `...` stands for lines and `…` for words that are left out. A
comment before a block says what else is done with it:

    <!-- not run: REASON -->      it is looked at no further
    <!-- write: FILE -->          it is the content of a file of the project
    <!-- merge: params.yaml -->   its settings take the place of those in the file
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import stories, workbench
from tests.conftest import ROOT
from tests.stories import Story
from tipline.paths import Paths

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(?:<!-- (.+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
RUN = {"sh", "python", "console"}
# What may be another from run to run: numbers, digests, hours, percentages.
VARIES = re.compile(r"[0-9a-f]{8,}|[-+]?\d+(?:[,.:]\d+)*%?")


@dataclass
class Block:
    language: str
    text: str
    said: str
    line: int

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.said.startswith("not run: ")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        said, indent, language, body = match.groups()
        lines = "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        found.append(Block(language, lines, said or "", text[: match.start(4)].count("\n") + 1))
    return found


def same(text: str) -> str:
    """A line without what varies."""
    return " ".join(VARIES.sub("#", text).split())


def shown(documented: str, printed: str) -> list[str]:
    """The documented lines that were not printed, in this order."""
    lines = [same(line) for line in printed.splitlines()]
    absent = []
    for line in documented.splitlines():
        wanted = same(line)
        if wanted in {"", "..."}:
            continue
        pattern = re.compile(".*".join(map(re.escape, wanted.split("…"))))
        place = next((index for index, there in enumerate(lines) if pattern.fullmatch(there)), None)
        if place is None:
            absent.append(line)
        else:
            del lines[: place + 1]
    return absent


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console's block, each with what it is shown to print."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(first, rest) for first, _, rest in (part.partition("\n") for part in parts)]


def run(story: Story, block: Block) -> list[str]:
    """Run a block; what is wrong, if anything."""
    if block.language == "console":
        return [
            f"$ {command}\nnot printed:\n{missing}\nbut:\n{printed}"
            for command, documented in commands(block.text)
            for printed in [told(story.run("bash", "-c", f"{{ {command}\n}} 2>&1"))]
            for missing in ["\n".join(shown(documented, printed))]
            if missing or "Traceback" in printed
        ]
    program = ["bash", "-e", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    done = story.run(*program, block.text)
    return [f"exit code {done.returncode}:\n{told(done)}"] if done.returncode else []


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def put(story: Story, block: Block) -> None:
    """Write or change the file that is named before a block."""
    what, _, name = block.said.partition(": ")
    path = story.root / name
    if what == "write":
        path.write_text(block.text, encoding="utf-8")
    elif what == "merge":
        workbench.change_settings(Paths(story.root), **yaml.safe_load(block.text))


WITH_BLOCKS = [page for page in PAGES if any(block.is_run for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_they_stand_there(
    request: pytest.FixtureRequest, page: Path, tmp_path: Path, tlc: Path
) -> None:
    story = stories.copy_first(request.getfixturevalue("tmp_path_factory"), tmp_path / "project")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "tlc").symlink_to(tlc)
    wrong = []
    for block in blocks(page):
        put(story, block)
        if block.is_run:
            wrong += [f"{page.name}:{block.line}: {fault}" for fault in run(story, block)]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_its_language_and_is_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            yaml.safe_load(block.text)
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")
        assert not block.said.startswith("not run") or len(block.said) > len("not run: ..."), block


def test_pages_that_code_names_are_there() -> None:
    scripts = [path for name in ("docs", "benchmarks", "src") for path in (ROOT / name).rglob("*.py")]
    named = {page for path in scripts for page in re.findall(r"docs/([a-z-]+\.md)", path.read_text(encoding="utf-8"))}
    assert named <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#/)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page.name}: {target}"
        if heading and path.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert heading in slugs, f"{page.name}: {target}"
