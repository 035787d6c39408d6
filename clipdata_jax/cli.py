"""The `clipdata` command: parses a subcommand's options, runs it, and turns errors into exit statuses."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args, get_origin, get_type_hints

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
        "clipdata evaluate run/model --classification cifar10.tar --classnames cifar10.json --out figures.json",
    ),
    "plan": Command("Plan", "clipdata plan configs/datacomp_small.py --processes 8"),
    "verify": Command("Verify", "clipdata verify metadata scores subset.npy selected"),
    "demo": Command("Demo", "clipdata demo --out demo-output"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 a failure of ours, 2 bad usage or input, 75 stopped."""
    try:
        with stopping.raised():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `clipdata ... | head` is no failure
        return 0
    finally:
        _flush()


def _flush() -> None:
    """Flushes what was printed; left to Python's exit, a closed pipe would end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        from clipdata_jax import __version__

        print(f"clipdata {__version__}")
        return 0
    if name not in COMMANDS:
        return _failed("clipdata", f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
    try:
        given: tuple[Any, ...] = ()
        if name == "plan" and "--" in rest:
            at = rest.index("--")
            rest, given = rest[:at], (_planned(rest[at + 1 :]),)
        options = _with_share(name, _parse(name, rest))
        if options is not None:
            with console.all_printable():
                importlib.import_module(f"clipdata_jax.commands.{name.replace('-', '_')}").run(options, *given)
    except (InputError, StorageError) as error:
        with_config = not str(error).startswith("--config") and any(word.startswith("--config") for word in rest)
        source = " (options not given as flags come from the --config file)" if with_config else ""
        return _failed(f"clipdata {name}", f"{error}{source}")
    except StoppedEarly as stopped:
        print(f"clipdata {name}: {stopped}", file=sys.stderr)
        return stopping.STATUS
    except KeyboardInterrupt:
        return _stopped(name)
    except Exception as error:
        if stopping.asked():  # some package turned the interrupt into an error of its own
            return _stopped(name)
        reason = of_the_disk(error) if isinstance(error, OSError) else ""
        if not reason:
            raise
        return _failed(f"clipdata {name}", reason)
    return 0


def _planned(words: list[str]) -> Any:
    """A `config.Run` of the command that `plan ... -- COMMAND ...` names."""
    from clipdata_jax import config
    from clipdata_jax.config.planning import require_planned

    name = words[0] if words else ""
    require_planned(name, "the command after --")
    return config.Run(**{name.replace("-", "_"): _parse(name, words[1:])})


def _failed(program: str, reason: str) -> int:
    print(console.printable(f"{program}: {reason}"), file=sys.stderr)
    return 2


def _stopped(name: str) -> int:
    print(f"clipdata {name}: stopped; run the same command again to continue", file=sys.stderr)
    return stopping.STATUS


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
    width, indent = _width(), max(map(len, COMMANDS)) + 4
    lines = [
        "Selects the image-text pairs that train the best CLIP.",
        "",
        "usage: clipdata COMMAND [options]",
        "       clipdata COMMAND --help",
        "",
    ]
    for name, command in COMMANDS.items():
        summary = _paragraphs(command.options_class)[0]
        lines += textwrap.wrap(summary, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
    end = (
        "The usual order: embed -> score -> select -> reshard -> train; report shows what was kept.",
        "Ctrl-C or SIGTERM stops a command with exit status 75; run it again to continue.",
        "To begin: clipdata demo",
    )
    return "\n".join([*lines, "", *(line for words in end for line in textwrap.wrap(words, width))])


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _paragraphs(options: type) -> list[str]:
    """The paragraphs of an options class's docstring, each in one line."""
    return [" ".join(text.split()) for text in inspect.cleandoc(options.__doc__ or "").split("\n\n")]


def _parse(name: str, arguments: list[str]) -> Any:
    import tyro

    command = COMMANDS[name]
    default, arguments = _from_config(name, arguments)
    _check_repeats(command.options_class, arguments)
    if {"-h", "--help"} & set(arguments):
        print(_description(command), end="\n\n")  # tyro would leave it unwrapped
    return tyro.cli(
        command.options_class,
        prog=f"clipdata {name}",
        description="",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        **({} if default is None else {"default": default}),
    )


def _check_repeats(options: type, arguments: list[str]) -> None:
    """Raises InputError if a flag that takes a list is given twice: only the last list would count."""
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for name in _lists(options):
        flag = f"--{name.replace('_', '-')}"
        if given.count(flag) > 1:
            raise InputError(f"{flag} is given {given.count(flag)} times; give all its values after one {flag}")


def _lists(options: type) -> Iterator[str]:
    """Names of the options that take several values."""
    for name, kind in get_type_hints(options).items():
        if dataclasses.is_dataclass(kind):
            yield from _lists(cast(type, kind))
        elif any(get_origin(one) is tuple for one in (kind, *get_args(kind))):
            yield name


def _description(command: Command) -> str:
    """The help above the flags, as wide as the terminal."""
    config_words = "--config FILE.py sets all options from the file's get_config(); flags override it."
    paragraphs = [textwrap.fill(text, _width()) for text in _paragraphs(command.options_class)]
    example = _wrap_command(f"Example: {command.example}")
    return "\n\n".join([*paragraphs, example, textwrap.fill(config_words, _width())])


def _wrap_command(line: str) -> str:
    """A command line broken before flags, as a shell allows."""
    lines = [""]
    for part in re.split(r" (?=--)", line):
        if len(lines[-1]) + len(part) + 3 > _width() and lines[-1]:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return "\n".join(lines)


def _from_config(name: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """Takes `--config FILE` out of the arguments; returns the file's options for this command, or None."""
    rest, path = [], None
    words = iter(arguments)
    for word in words:
        flag, sign, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
        elif (path := value if sign else next(words, None)) is None:
            raise InputError("--config needs a file: --config configs/datacomp_small.py")
    if name == "plan":  # it takes all that the file sets
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
