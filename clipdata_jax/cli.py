"""The `clipdata` command: parses a subcommand's options, runs it, and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, cast

from clipdata_jax import arguments
from clipdata_jax.config.base import did_you_mean
from clipdata_jax.errors import InputError, StoppedEarly, StorageError, of_the_disk
from clipdata_jax.runtime import console, stopping


@dataclasses.dataclass(frozen=True)
class Command:
    """An entry of the registry; `commands/NAME.py` has its `run(options)`.

    Attributes:
      options: name of its options class in `clipdata_jax.config`, which is imported when needed.
      example: a command line that shows the usual flags.
      together: whether several processes work together on every step (`jax.distributed`).
    """

    options: str
    example: str
    together: bool = False

    @property
    def options_class(self) -> type:
        from clipdata_jax import config

        return cast(type, getattr(config, self.options))


COMMANDS = {
    "embed": Command(
        "Embed", "clipdata embed 'pool/{00000..00099}.tar' --model l14=clip-vit-large-patch14 --out metadata"
    ),
    "score": Command("Score", "clipdata score metadata --target in1k=imagenet.npy --out scores"),
    "dedup": Command(
        "Dedup", "clipdata dedup metadata --threshold 0.95 --keep best:neg_clip_loss --scores scores --out subset.npy"
    ),
    "entries": Command("Entries", "clipdata entries metadata --list entries.txt --out entries"),
    "select": Command(
        "Select",
        "clipdata select scores --rule 'top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)' --out subset.npy",
    ),
    "filter": Command(
        "Filter", "clipdata filter metadata --preset clip_score --arch l14 --fraction 0.3 --out subset.npy"
    ),
    "norm-sim-d": Command(
        "NormSimD",
        "clipdata norm-sim-d metadata --survivors best30.npy --fraction 0.2 --steps 500 --out subset.npy",
        together=True,
    ),
    "uids": Command("Uids", "clipdata uids union mine.npy dfn.npy hype.npy --out all.npy"),
    "reshard": Command("Reshard", "clipdata reshard pool --subset subset.npy --out selected"),
    "report": Command("Report", "clipdata report scores --subset subset.npy --pool pool --out report.html"),
    "export": Command("Export", "clipdata export scores --metadata metadata --top 100 neg_clip_loss --out best.csv"),
    "train": Command(
        "Train", "clipdata train selected --tokenizer clip-vit-base-patch32 --steps 2000 --out run", together=True
    ),
    "evaluate": Command(
        "Evaluate",
        "clipdata evaluate run/model --suite datacomp --data evalsets --out results",
    ),
    "compare": Command("CompareModels", "clipdata compare random=r0,r1,r2 selected=s0,s1,s2 --out comparison.html"),
    "run": Command("RunSteps", "clipdata run --config mine.py"),
    "plan": Command("Plan", "clipdata plan configs/datacomp_small.py --processes 8"),
    "verify": Command("Verify", "clipdata verify metadata scores subset.npy selected"),
    "demo": Command("Demo", "clipdata demo --out demo-output"),
}


@dataclasses.dataclass(frozen=True)
class _Ending:
    """How a command ended: its exit status, and what it made or what was wrong."""

    status: int = 0
    options: Any = None
    made: Any = None
    error: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 a failure of ours, 2 bad usage or input, 75 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json, quiet = ("--json" in words, "--quiet" in words) if not arguments.wants_help(words) else (False, False)
    words = [word for word in words if word not in ("--json", "--quiet")]
    start, out = time.monotonic(), sys.stdout
    ending = _Ending(1, error="an error of this program; the traceback is on standard error")
    try:
        with contextlib.ExitStack() as stack:
            if quiet:
                stack.enter_context(console.silence())
            elif as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(stopping.raised())
            ending = _run(words)
        return ending.status
    except BrokenPipeError:  # `clipdata ... | head` is no failure
        return 0
    finally:
        if as_json:
            print(_to_json(words, ending, time.monotonic() - start), file=out)
        _flush()


def _to_json(words: Sequence[str], ending: _Ending, seconds: float) -> str:
    """What `--json` prints of a command that has ended."""
    from clipdata_jax import outcome

    out = getattr(ending.options, "out", None)
    content: dict[str, Any] = {
        "command": words[0] if words else None,
        "status": ending.status,
        "seconds": round(seconds, 3),
    }
    if out is not None:
        content["out"] = out
    if ending.status:
        content |= {"error": ending.error, **ending.facts}
    else:
        content["result"] = outcome.facts_of(ending.made)
    return json.dumps(outcome.plain(content), ensure_ascii=False, allow_nan=False)


def _flush() -> None:
    """Flushes what was printed; left to Python's exit, a closed pipe would end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(words: list[str]) -> _Ending:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return _Ending(0 if words else 2, error="no command is given")
    name, *rest = words
    if name in ("-V", "--version"):
        from clipdata_jax import __version__

        print(f"clipdata {__version__}")
        return _Ending(made={"version": __version__})
    options: Any = None
    try:
        if name == "--print-completion":
            print(arguments.completion(" ".join(rest), {one: COMMANDS[one].options_class for one in COMMANDS}))
            return _Ending()
        if name not in COMMANDS:
            advice = did_you_mean(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
            raise InputError(f"unknown command {name!r}{advice}")
        given: tuple[Any, ...] = ()
        if name == "plan" and "--" in rest:
            at = rest.index("--")
            rest, given = rest[:at], (_planned(rest[at + 1 :]),)
        if name == "run":
            given = (_call,)
        options = _parse(name, rest)
        with console.all_printable():
            return _Ending(options=options, made=_call(name, options, *given))
    except (InputError, StorageError) as error:
        with_config = name not in ("run", "plan") and any(word.startswith("--config") for word in rest)
        with_config &= not str(error).startswith("--config")
        source = " (options not given as flags come from the --config file)" if with_config else ""
        return _ended(name, 2, f"{error}{source}", options, getattr(error, "facts", {}))
    except StoppedEarly as stopped:
        return _ended(name, stopping.STATUS, str(stopped), options)
    except KeyboardInterrupt:
        return _ended(name, stopping.STATUS, _STOPPED, options)
    except Exception as error:
        if stopping.asked():  # some package turned the interrupt into an error of its own
            return _ended(name, stopping.STATUS, _STOPPED, options)
        reason = of_the_disk(error) if isinstance(error, OSError) else ""
        if not reason:
            raise
        return _ended(name, 2, reason, options)


_STOPPED = "stopped; run the same command again to continue"


def _ended(name: str, status: int, error: str, options: object = None, facts: dict[str, Any] | None = None) -> _Ending:
    """Says why a command ended before it was done."""
    program = f"clipdata {name}" if name in COMMANDS else "clipdata"
    print(console.printable(f"{program}: {error}"), file=sys.stderr)
    return _Ending(status, options, error=error, facts=facts or {})


def _call(name: str, options: Any, *given: object) -> Any:
    """Runs a command with this process's share of the work; returns what it made, None if another process says it."""
    shared = _with_share(name, options)
    if shared is None:
        return None
    return importlib.import_module(f"clipdata_jax.commands.{name.replace('-', '_')}").run(shared, *given)


def _planned(words: list[str]) -> Any:
    """A `config.Run` of the command that `plan ... -- COMMAND ...` names."""
    from clipdata_jax import config
    from clipdata_jax.config.planning import require_planned

    name = words[0] if words else ""
    require_planned(name, "the command after --")
    return config.Run(**{name.replace("-", "_"): _parse(name, words[1:])})


def _with_share(name: str, options: Any) -> Any | None:
    """The options with this process's share of the work; None where another process does all of it."""
    from clipdata_jax.runtime import launch

    if hasattr(options, "workers"):
        workers = launch.detect(options.workers, together=COMMANDS[name].together)
        return dataclasses.replace(options, workers=workers)
    share = launch.share_of()
    if share.index:
        print(f"clipdata {name}: process {share.index + 1} of {share.count} has nothing to do; process 1 does it all")
        return None
    return options


def _overview() -> str:
    width, indent = arguments.width(), max(map(len, COMMANDS)) + 4
    lines = [
        "Selects the image-text pairs that train the best CLIP.",
        "",
        "usage: clipdata COMMAND [options]",
        "       clipdata COMMAND --help",
        "       clipdata --print-completion bash|zsh|fish",
        "",
    ]
    for name, command in COMMANDS.items():
        summary = arguments.paragraphs(command.options_class)[0]
        lines += textwrap.wrap(summary, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
    end = (
        "The usual order: embed -> score -> select -> reshard -> train; report shows what was kept.",
        "Ctrl-C or SIGTERM stops a command with exit status 75; run it again to continue.",
        "To begin: clipdata demo",
    )
    return "\n".join([*lines, "", *(line for words in end for line in textwrap.wrap(words, width))])


def _parse(name: str, words: list[str]) -> Any:
    default, rest = _from_config(name, words)
    command = COMMANDS[name]
    if arguments.wants_help(rest):
        print(arguments.description(command.options_class, command.example), end="\n\n")
    return arguments.parse(name, command.options_class, rest, default)


def _from_config(name: str, given: list[str]) -> tuple[Any, list[str]]:
    """Takes `--config FILE` out of the arguments; returns the file's options for this command, or None."""
    rest, path = [], None
    words = iter(given)
    for word in words:
        flag, sign, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
        elif (path := value if sign else next(words, None)) is None:
            raise InputError("--config needs a file: --config configs/datacomp_small.py")
    if name in ("plan", "run"):  # they take all that the file sets
        return None, rest if path is None else [path, *rest]
    return (None if path is None else _options_in(path, name)), rest


def _options_in(path: str, name: str) -> Any:
    """The options for a command in a file's `Run`."""
    from clipdata_jax import config

    run = config.load_run(path)
    field = name.replace("-", "_")
    options = getattr(run, field)
    if options is None:
        raise InputError(f"--config {path}: its Run has no options for {name}; add {field}=... to it")
    return options
