"""The command line: ``skipnet VERB --option …``. Each option is also an environment variable ``SKIPNET_OPTION``.

A verb is a module of `service.cli` that defines one class with a method ``cli_cmd``. Only the module of the given verb
is imported.
"""

import json
import os
import signal
import sys
from argparse import Action, RawDescriptionHelpFormatter
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliPositionalArg, CliSettingsSource, SettingsError

from service.cli.failures import explain

HELP = ("--help", "-h", "help")
VERBS = {
    "serve": ("serve", "serve the models of a repository over HTTP"),
    "promote": ("versions.promote", "serve one version of a model, also when newer ones are published"),
    "rollback": ("versions.rollback", "serve the version of a model that was served before"),
    "classify": ("classify", "classify images from the command line, without a server"),
    "train": ("training.train", "train a network: supervised, then hybrid reinforcement learning"),
    "teach": ("training.teach", "train a teacher for knowledge distillation"),
    "reproduce": (
        "training.reproduce",
        "train the rows of the paper's table and its ablations, with a results file for each",
    ),
    "report": ("training.report", "write the table and the chart of reproduce's results files"),
    "average": ("training.average", "write a model soup: the mean of several checkpoints' weights"),
    "evaluate": ("measuring.evaluate", "measure the accuracy and the computation of a checkpoint"),
    "quantize": ("measuring.quantize", "write a version that a CPU runs faster, in 16-bit integers"),
    "cascade": ("measuring.cascade", "build a cascade of checkpoints: unsure images are escalated to the next one"),
    "frontier": ("measuring.frontier", "compare a cascade with other systems at the same MACs"),
    "analyze": ("measuring.analyze", "report which blocks a checkpoint executes for which images"),
    "import": ("import_checkpoint", "convert weights of the public SkipNet code"),
    "export": ("export", "write a checkpoint as ONNX"),
    "bench": ("measuring.bench", "measure the speed of the engines on this machine"),
    "verify-gpu": ("measuring.verify_gpu", "check the outputs, speed and energy of the GPU engines"),
}
POSITIONAL = get_args(CliPositionalArg)[1]
"""The metadata of a positional argument."""


class HelpFormatter(RawDescriptionHelpFormatter):
    """Omits "(default: None)", because the description explains such a default."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help and action.help.replace(" (default: None)", "")


def main(arguments: list[str] | None = None) -> None:
    """Run the verb in ``arguments``. Exit with 2 for a wrong option and with 1 for an error."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot print becomes an escape instead of an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    verb, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb not in VERBS and verb not in HELP:
        leave(f"no verb {verb!r}; one of {', '.join(VERBS)}", 2)
    try:
        run(verb, options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # The reader of the pipe has ended, as `head` does.
        discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            discard_output()
        leave(message, 1)


def run(verb: str, options: list[str]) -> None:
    """Run a verb or print the overview."""
    if verb in HELP:
        print(overview())
    else:
        read_options(verb, options).cli_cmd()


def discard_output() -> None:
    """Redirect the rest of stdout's buffer to the null device, so that Python exits without an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def overview() -> str:
    """Return the text of `skipnet --help`."""
    lines = [f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(["usage: skipnet VERB [--option …]", "", *lines, "", "skipnet VERB --help lists its options."])


def read_options(verb: str, arguments: list[str]) -> Any:
    """Return the options of a verb, from ``arguments``, then the environment, then the defaults."""
    command = find_command(VERBS[verb][0])
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            command,
            cli_parse_args=arguments,
            cli_prog_name=f"skipnet {verb}",
            cli_show_env_vars=True,
            formatter_class=HelpFormatter,
        )
        return command(_cli_settings_source=source)
    except ValidationError as error:
        leave("; ".join(describe_wrong_option(command, problem) for problem in error.errors()), 2)
    except SettingsError as error:
        leave(describe_wrong_json(command) or str(error), 2)


def find_command(module: str) -> type[BaseSettings]:
    """Return the class in ``service.cli.<module>`` that has ``cli_cmd``."""
    names = vars(import_module(f"service.cli.{module}"))
    [command] = [
        value
        for value in names.values()
        if isinstance(value, type)
        and issubclass(value, BaseSettings)
        and value.__module__ == names["__name__"]
        and hasattr(value, "cli_cmd")
    ]
    return command


def describe_wrong_option(command: type[BaseSettings], problem: Any) -> str:
    """Return the message for one option that pydantic refused."""
    if not problem["loc"]:
        return f"options: {problem['msg']}"
    name = str(problem["loc"][0])
    field = command.model_fields[name]
    named = name.upper() if POSITIONAL in field.metadata else f"--{name.replace('_', '-')}"
    if problem["type"] == "missing":
        return f"{named} is missing"
    if problem["type"] == "string_pattern_mismatch":
        # The description explains the pattern.
        wrong = f"{problem['input']!r} does not fit: {field.description}"
    elif field.repr:
        wrong = f"{problem['msg']}, not {problem['input']!r}"
    else:  # A secret.
        wrong = f"{problem['msg']}: {field.description}"
    return f"{named} (SKIPNET_{name.upper()}): {wrong}"


def describe_wrong_json(command: type[BaseSettings]) -> str:
    """Return the message for environment variables that are not JSON lists.

    It omits their values, which may be keys.
    """
    wrong = []
    for name, field in command.model_fields.items():
        text = os.environ.get(variable := f"SKIPNET_{name.upper()}")
        if text is None or field.annotation != list[str]:
            continue
        try:
            json.loads(text)
        except ValueError:
            wrong.append(f"{variable} must be a JSON list, such as '[\"TEXT\"]': {field.description}")
    return "; ".join(wrong)


def leave(message: str, code: int) -> NoReturn:
    """Print a message to stderr and exit."""
    print(f"skipnet: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
