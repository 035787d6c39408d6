"""The `clipdata` command: finds the subcommand, makes its options, runs it, turns errors into exit statuses."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args, get_origin, get_type_hints

from clipdata_jax import config
from clipdata_jax.errors import InputError, StorageError, of_the_disk
from clipdata_jax.runtime import console, stopping


@dataclasses.dataclass(frozen=True)
class _Command:
    options: type
    example: str
    together: bool = False  # whether several processes work on every step together


_COMMANDS = {
    "embed": _Command(
        config.Embed,
        "clipdata embed 'pool/{00000..00099}.tar' --model l14=clip-vit-large-patch14 --out metadata",
    ),
    "score": _Command(
        config.Score,
        "clipdata score metadata --target in1k=imagenet.npy --out scores",
    ),
    "select": _Command(
        config.Select,
        "clipdata select scores --rule 'top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)' --out subset.npy",
    ),
    "filter": _Command(
        config.Filter,
        "clipdata filter metadata --preset clip_score --arch l14 --fraction 0.3 --out subset.npy",
    ),
    "norm-sim-d": _Command(
        config.NormSimD,
        "clipdata norm-sim-d metadata --survivors best30.npy --fraction 0.2 --steps 500 --out subset.npy",
        together=True,
    ),
    "uids": _Command(config.Uids, "clipdata uids union mine.npy dfn.npy hype.npy --out all.npy"),
    "reshard": _Command(config.Reshard, "clipdata reshard pool --subset subset.npy --out selected"),
    "report": _Command(
        config.Report, "clipdata report scores --subset subset.npy --tars pool --out report.html"
    ),
    "train": _Command(
        config.Train,
        "clipdata train selected --tokenizer clip-vit-base-patch32 --steps 2000 --out run",
        together=True,
    ),
    "evaluate": _Command(
        config.Evaluate,
        "clipdata evaluate run/model --classification cifar10.tar --classnames cifar10.json --out figures.json",
    ),
    "verify": _Command(config.Verify, "clipdata verify metadata scores subset.npy selected"),
    "demo": _Command(config.Demo, "clipdata demo --out demo-output"),
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
    """Sends off what is printed; left to Python's exit, it would end in a traceback where the reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from clipdata_jax import __version__

        print(f"clipdata {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        print(f"clipdata: {name!r} is no command; there are {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    try:
        options = _parse(name, rest)
        if (own := _as_launched(name, options)) is not None:
            with console.all_printable():
                importlib.import_module(f"clipdata_jax.commands.{name.replace('-', '_')}").run(own)
    except (InputError, StorageError) as error:
        configs = not str(error).startswith("--config") and any(word.startswith("--config") for word in rest)
        told = " (the options are those of the --config file where no flag overrides them)" if configs else ""
        print(console.printable(f"clipdata {name}: {error}{told}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _stopped(name)
    except Exception as error:
        if stopping.asked():  # it is what some package made of the interrupt
            return _stopped(name)
        told = of_the_disk(error) if isinstance(error, OSError) else ""
        if not told:
            raise
        print(console.printable(f"clipdata {name}: {told}"), file=sys.stderr)
        return 2
    return 0


def _stopped(name: str) -> int:
    print(f"clipdata {name}: stopped; run the same command again to go on", file=sys.stderr)
    return stopping.STATUS


def _as_launched(name: str, options: Any) -> Any | None:
    """The options with this process's share of the work; None where another process does all of it."""
    from clipdata_jax.runtime import launch

    if hasattr(options, "workers"):
        workers = launch.detect(options.workers, together=_COMMANDS[name].together)
        return dataclasses.replace(options, workers=workers)
    share = launch.share_of()
    if share.index:
        print(
            f"clipdata {name}: nothing to do in process {share.index + 1} of {share.count}, the first does all"
        )
        return None
    return options


def _overview() -> str:
    width, name_width = _width(), max(map(len, _COMMANDS))
    told = [
        "clipdata: choose the image-text pairs that train the best CLIP.",
        "",
        "usage: clipdata COMMAND [options]      clipdata COMMAND --help explains a command",
        "",
    ]
    for name, command in _COMMANDS.items():
        told += textwrap.wrap(
            f"{name:<{name_width}}  {_summary(command.options)}",
            width,
            initial_indent="  ",
            subsequent_indent=" " * (name_width + 4),
        )
    end = (
        "A pool goes through: embed -> score -> select -> reshard, and report shows what was kept.",
        "Stopped by Ctrl-C or SIGTERM, a command ends with status 75: the same command then goes on where it was.",
        "Start with: clipdata demo",
    )
    return "\n".join([*told, "", *(line for words in end for line in textwrap.wrap(words, width))])


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _summary(options: type) -> str:
    return (options.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _parse(name: str, arguments: list[str]) -> Any:
    import tyro

    command = _COMMANDS[name]
    default, arguments = _from_config(name, arguments)
    _check_repeats(command.options, arguments)
    if {"-h", "--help"} & set(arguments):
        print(_explained(command), end="\n\n")  # tyro would leave it unwrapped
    return tyro.cli(
        command.options,
        prog=f"clipdata {name}",
        description="",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        **({} if default is None else {"default": default}),
    )


def _check_repeats(options: type, arguments: list[str]) -> None:
    """Raises InputError where a flag that takes a list is given twice: only the last list would count."""
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for name in _lists(options):
        flag = f"--{name.replace('_', '-')}"
        if given.count(flag) > 1:
            raise InputError(
                f"{flag} is given {given.count(flag)} times; give all its values after one {flag}"
            )


def _lists(options: type) -> Iterator[str]:
    """Names of the options that take several values."""
    for name, kind in get_type_hints(options).items():
        if dataclasses.is_dataclass(kind):
            yield from _lists(cast(type, kind))
        elif any(get_origin(one) is tuple for one in (kind, *get_args(kind))):
            yield name


def _explained(command: _Command) -> str:
    """What a command does, its example and how it takes a file of options, as wide as the terminal."""
    paragraphs = inspect.cleandoc(command.options.__doc__ or "").split("\n\n")
    told = [textwrap.fill(" ".join(words.split()), _width()) for words in paragraphs]
    config_words = "--config FILE.py sets all options from the file's get_config(); flags override it."
    return "\n\n".join([*told, f"Example: {command.example}", textwrap.fill(config_words, _width())])


def _from_config(name: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """Takes `--config FILE` out of the arguments; returns the file's options for this command, or None."""
    rest, path = [], None
    waiting = False
    for argument in arguments:
        if waiting:
            path, waiting = argument, False
        elif argument == "--config":
            waiting = True
        elif argument.startswith("--config="):
            path = argument.partition("=")[2]
        else:
            rest.append(argument)
    if waiting:
        raise InputError("--config needs a file: --config configs/datacomp_small.py")
    if path is None:
        return None, rest
    return _options_in(path, name), rest


def _options_in(path: str, name: str) -> Any:
    """The options for a command in a file's `Run`."""
    run = config.load_run(path)
    options = getattr(run, name.replace("-", "_"))
    if options is None:
        raise InputError(f"--config {path}: its Run sets no {name!r} options; add {name}=... to it")
    return options
