"""The words of a command line, turned into a command's options; what is wrong with them, in one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import tyro

from clipdata_jax.config.base import EveryCommand, did_you_mean
from clipdata_jax.errors import InputError

SHELLS = ("bash", "zsh", "fish")
_HELP = ("-h", "--help")
_MANY = 1 << 30


@dataclasses.dataclass(frozen=True)
class _Argument:
    """An option as it is written: with a flag, or without if it is positional, and with how many values."""

    positional: bool
    needed: bool
    values: int


def parse(name: str, options: type, words: Sequence[str], default: object | None) -> Any:
    """Parses the words after a command's name; prints its usage and options and exits if they ask for help.

    Args:
      name: of the command.
      options: its options class.
      words: all but those of `--config`, `--json` and `--quiet`.
      default: options to start from; None for the class's own defaults.

    Raises:
      InputError: an option is unknown, missing, repeated or has a wrong value.
    """
    if not wants_help(words):
        _check(name, _arguments(options), words, is_complete=default is not None)
    whole = _whole(options)
    given = {} if default is None else {"default": whole(options=default)}
    problem = io.StringIO()
    with _wide_errors(problem) if not wants_help(words) else contextlib.nullcontext():
        try:
            made = tyro.cli(
                whole,
                prog=f"clipdata {name}",
                description="",
                args=list(words),
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
        except SystemExit as end:
            if not end.code:
                raise
            raise InputError(f"{_sentence(problem.getvalue(), words)} (see clipdata {name} --help)") from end
    return made.options


def wants_help(words: Sequence[str]) -> bool:
    """Whether the help is asked for."""
    return not set(_HELP).isdisjoint(words)


def _whole(options: type) -> Any:
    """A command's options, and then those of every command, as tyro shows them: in this order."""
    unnamed = Annotated[options, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    every = dataclasses.field(default=EveryCommand())
    return dataclasses.make_dataclass(
        options.__name__, [("options", unnamed), ("every_command", EveryCommand, every)], kw_only=True
    )


@contextlib.contextmanager
def _wide_errors(file: io.StringIO) -> Iterator[None]:
    """Collects what is printed as an error, in lines that don't break sentences."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        with contextlib.redirect_stderr(file):
            yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _arguments(options: type) -> dict[str, _Argument]:
    """The options of a class and of those nested in it, by name, as tyro reads them."""
    found: dict[str, _Argument] = {}
    for field in dataclasses.fields(options):
        kind = get_type_hints(options)[field.name]
        if dataclasses.is_dataclass(kind):
            found |= _arguments(cast(type, kind))
            continue
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found[field.name.replace("_", "-")] = _Argument("Positional" in str(field.type), needed, _values(kind))
    return found


def _values(kind: Any) -> int:
    """How many words an option takes at most."""
    if kind is bool:
        return 0
    tuples = [get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is tuple]
    return max((_MANY if ... in several else len(several) for several in tuples), default=1)


def _check(name: str, arguments: Mapping[str, _Argument], words: Sequence[str], *, is_complete: bool) -> None:
    """Checks the flags, which tyro would do in a page of text or not at all.

    Raises:
      InputError: a flag is unknown; one that takes a list is given twice, where only the last list would count; or
        such a flag has swallowed the positional arguments after it.
    """
    flags = {f"--{one}": argument for one, argument in arguments.items() if not argument.positional}
    switches = {f"--no-{one}": argument for one, argument in arguments.items() if not argument.values}
    flags |= switches
    loose: list[str] = []
    taken: dict[str, list[str]] = {}
    holds, room = loose, _MANY
    for word in words:
        if word.startswith("--"):
            flag, sign, value = word.partition("=")
            flag = flag.replace("_", "-")
            if flag not in flags:
                raise InputError(f"unknown option {flag}{did_you_mean(flag, flags)} (see clipdata {name} --help)")
            if flag in taken and flags[flag].values > 1:
                times = sum(one.partition("=")[0].replace("_", "-") == flag for one in words)
                raise InputError(f"{flag} is given {times} times; give all its values after one {flag}")
            taken[flag] = [value] if sign else []
            holds, room = (taken[flag], flags[flag].values - len(taken[flag])) if not sign else (loose, _MANY)
            continue
        if len(holds) >= room:
            holds, room = loose, _MANY
        holds.append(word)
    first = next((one for one, argument in arguments.items() if argument.positional and argument.needed), None)
    if loose or is_complete or first is None:
        return
    for flag, values in taken.items():
        if flags[flag].values == _MANY and len(values) > 1:
            at = len(words) - 1 - list(reversed(words)).index(values[-1])
            better = shlex.join(["clipdata", name, values[-1], *words[:at], *words[at + 1 :]])
            raise InputError(
                f"{flag} took {' '.join(values)!r}, which leaves no {first}; write {first} first: {better}"
            )


def _sentence(box: str, words: Sequence[str]) -> str:
    """One sentence of what tyro prints in a box when it can't read some words."""
    sections: list[list[str]] = [[]]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    # Where standard output isn't UTF-8, a title and a rule take the place of the frame.
    framed = [line[2:-1] for line in lines if line.startswith("│")]
    for row in map(str.rstrip, framed or [line[2:] for line in lines[2:]]):
        if row and not row.strip("─-"):
            sections.append([])
        else:
            sections[-1].append(row)
    first = sections[0]
    text = " ".join(" ".join(first).split())
    if text.startswith("Missing from"):
        rows = [row.strip() for row in first if re.match(r" {4}\S", row)]
        return f"missing: {', '.join(rows)}"
    if match := re.match(r"invalid choice (.*) for argument '(.*?)'\. Expected one of \((.*?),?\)", text):
        name = match[2].removeprefix("options.")
        choices = [choice for choice in match[3].replace("'", "").split(", ") if choice != "None"]
        return f"{name} is {match[1]}, expected one of {', '.join(choices)}"
    if match := re.match(r"Error parsing (\S+):", text):
        flag = match[1].split("/")[0]
        given = list(_given(words, flag))
        form = next((row.strip() for row in sections[1][1:] if row.strip()), flag) if len(sections) > 1 else flag
        return f"{flag} is {' '.join(given)!r}, expected {form.removeprefix(flag).strip() or 'another value'}"
    if match := re.match(r"Missing value for argument '(.*?)'\. Expected (\d+)", text):
        return f"{match[1]} needs {'a value' if match[2] == '1' else f'{match[2]} values'}"
    return (text[:1].lower() + text[1:]).rstrip(".") or "can't be read"


def _given(words: Sequence[str], flag: str) -> Iterator[str]:
    """The values after a flag."""
    here = False
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            here = name.replace("_", "-") == flag
            if here and value:
                yield value
        elif here:
            yield word


def completion(shell: str, options: Mapping[str, type]) -> str:
    """The script that completes commands, flags, their choices and files in a shell.

    Args:
      shell: one of `SHELLS`.
      options: command -> its options class.

    Raises:
      InputError: another shell.
    """
    if shell not in SHELLS:
        raise InputError(f"--print-completion is {shell!r}, expected one of {', '.join(SHELLS)}")
    kinds: Any = [
        Annotated[_whole(one), tyro.conf.subcommand(name, prefix_name=False, description=paragraphs(one)[0])]
        for name, one in options.items()
    ]
    every: Any = typing.Union[tuple(kinds)]  # noqa: UP007
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(
            every,
            prog="clipdata",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    # Where no command or flag fits, a file does; the scripts have a word for that.
    loop = "for completion in completions"
    made = script.getvalue().replace(f"{loop}:", f"{loop} or ['__TYRO_COMPLETE_FILES__']:")
    return made + _BASH_FILES if shell == "bash" else made


# tyro's function joins a file's name to the word before it, as if both were one with a colon.
_BASH_FILES = """
_clipdata_or_files() {
  _tyro_clipdata "$@"
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _clipdata_or_files clipdata
"""


def width() -> int:
    """Columns of the terminal, at most 100."""
    return min(shutil.get_terminal_size().columns, 100)


def paragraphs(options: type) -> list[str]:
    """The paragraphs of an options class's docstring, each in one line."""
    return [" ".join(text.split()) for text in inspect.cleandoc(options.__doc__ or "").split("\n\n")]


def description(options: type, example: str) -> str:
    """The help above the usage and the options, as wide as the terminal, which tyro would leave unwrapped."""
    return "\n\n".join(
        [*(textwrap.fill(text, width()) for text in paragraphs(options)), _wrap_command(f"Example: {example}")]
    )


def _wrap_command(line: str) -> str:
    """A command line broken before flags, as a shell allows."""
    lines = [""]
    for part in re.split(r" (?=--)", line):
        if len(lines[-1]) + len(part) + 3 > width() and lines[-1]:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return "\n".join(lines)
