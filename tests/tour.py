"""The picture at the top of the README: features and an estimator, a promotion in MLflow, the months scored again."""

from __future__ import annotations

import ast
import base64
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


ROOT = Path(__file__).parent.parent
WIDTH = 1240
# Of what `dvc repro` prints: what the stages say themselves.
SHOWN = re.compile(r"^(challenger: |the champion moved|scoring with|scored|20\d\d-\d\d: (?!published))")
STYLE = """
body { margin: 0; width: 1240px; font: 15px/1.4 system-ui, sans-serif; color: #1b1f24; background: #fff }
main { padding: 20px; display: grid; grid-template-columns: 1fr 1fr; gap: 18px }
section { border: 1px solid #d5dae1; border-radius: 8px; overflow: hidden; background: #fff }
h2 { margin: 0; padding: 9px 14px; font-size: 15px; background: #f2f4f7; border-bottom: 1px solid #d5dae1 }
div { overflow: hidden; height: 290px }
img { display: block; width: 100% }
pre { margin: 0; padding: 12px 14px; font: 11px/1.6 ui-monospace, monospace; white-space: pre-wrap }
.code { height: 266px }
.terminal { color: #e6edf3; background: #16202b }
b { color: #7ee2a8; font-weight: normal }
i { color: #6a737d; font-style: normal }
.wide { grid-column: 1 / 3 }
"""


def compose(page: Page, pictures: Path, settings: str, output: str) -> None:
    """Put three panels into `tour.png`: code and settings, promote.png, what `dvc repro` then printed."""
    promoted = base64.b64encode((pictures / "promote.png").read_bytes()).decode()
    code = html.escape(f"{read_function()}\n\n")
    lines = "\n".join(html.escape(line) for line in output.splitlines() if SHOWN.match(line))
    page.set_viewport_size({"width": WIDTH, "height": 700})
    page.set_content(
        f"""<style>{STYLE}</style><main>
        <section><h2>1 · Write features in pandas, name any estimator</h2>
        <pre class="code"><i># features.py</i>\n{code}<i># params.yaml</i>\n{html.escape(settings)}</pre></section>
        <section><h2>2 · Promote the version in MLflow</h2>
        <div><img src="data:image/png;base64,{promoted}" style="margin-top: -148px"></div></section>
        <section class="wide"><h2>3 · Type <code>dvc repro</code>: the months that it affects are scored again</h2>
        <pre class="terminal"><b>$ dvc repro</b>\n{lines}</pre></section>
        </main>"""
    )
    page.locator("main").screenshot(path=pictures / "tour.png")
    page.set_viewport_size({"width": 1200, "height": 800})


def read_function() -> str:
    """Return the function of features.py without its docstring."""
    text = (ROOT / "features.py").read_text()
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    docstring, lines = function.body[0], text.splitlines()
    return "\n".join(
        [*lines[function.lineno - 1 : docstring.lineno - 1], *lines[docstring.end_lineno : function.end_lineno]]
    )
