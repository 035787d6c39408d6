"""Pages of the command reference, one a command, made of what `clipdata COMMAND --help` prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from clipdata_jax import cli

ROOT = Path(__file__).parents[1]


def write(folder: Path) -> None:
    """Writes NAME.md for every command and an index; a page that is already the same is left alone."""
    folder.mkdir(exist_ok=True)
    helps = {name: help_text(name) for name in cli.COMMANDS}
    pages = {name: page(name, text) for name, text in helps.items()} | {"index": index(helps)}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def index(helps: dict[str, str]) -> str:
    """The page that lists the commands, with the first sentence of each help."""
    names = "\n".join(helps)
    firsts = {name: " ".join(text.strip().split("\n\n")[0].split()) for name, text in helps.items()}
    rows = "\n".join(f"[`{name}`]({name}.md)\n: {_escaped(first)}\n" for name, first in firsts.items())
    return f"""# Commands

What each command does and every option that it takes, as `clipdata COMMAND --help` prints them.

```{{toctree}}
:hidden:

{names}
```

{rows}"""


def page(name: str, text: str) -> str:
    """The page of a command, made of its help, in Markdown."""
    words, _, usage_and_options = text.partition("usage: ")
    usage, *boxes = re.split(r"^╭─ (.*?) ─*╮$", usage_and_options, flags=re.MULTILINE)
    made = [f"# clipdata {name}", ""]
    for paragraph in filter(None, map(str.strip, words.split("\n\n"))):
        one = " ".join(paragraph.split())
        if one.startswith("Example: "):
            made += ["```sh", one.removeprefix("Example: "), "```", ""]
        else:
            made += [_escaped(one), ""]
    made += ["```{code-block} text", ":class: wrapped", "", " ".join(usage.split()), "```", ""]
    for title, box in zip(boxes[::2], boxes[1::2], strict=True):
        made += [f"## {title[0].upper()}{title[1:]}", ""]
        rows = _rows(box)
        rule = next((number for number, row in enumerate(rows) if row.startswith(" ──")), None)
        if rule is not None:
            made += [_escaped(" ".join(" ".join(rows[:rule]).split())), ""]
            rows = rows[rule + 1 :]
        for flag, meaning in _options(rows):
            made += [f"`{flag}`", f": {_escaped(meaning)}", ""]
    return "\n".join(made)


def help_text(name: str) -> str:
    """What `clipdata NAME --help` prints in a wide terminal."""
    command = [sys.executable, "-m", "clipdata_jax", name, "--help"]
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=True)
    return done.stdout


def _rows(box: str) -> list[str]:
    """The lines of a box of the help without its border."""
    return [line[1:-1].rstrip() for line in box.splitlines() if line.startswith("│")]


def _options(rows: list[str]) -> Iterator[tuple[str, str]]:
    """Each flag with its meaning, which begins beside or below it, further to the right."""
    flag, meaning = "", ""
    for row in rows:
        if row.startswith(" ") and not row.startswith("  "):
            if flag:
                yield flag, meaning.strip()
            flag, _, meaning = row.strip().partition("  ")
        else:
            meaning += f" {row.strip()}"
    yield flag, meaning.strip()


def _escaped(text: str) -> str:
    """Text as Markdown shows it unchanged; flags become code."""
    parts = re.sub(r"(?<![\w`-])(--[a-z][a-z-]*(?: FILE\.py)?)", r"`\1`", text).split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]{}$~|#])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
