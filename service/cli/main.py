"""The command line: ``skipnet VERB --option …``; each option is a variable ``SKIPNET_OPTION`` too.

A verb is a module of `service.cli` with one class of its own that has a method ``cli_cmd``. Only the
verb that was asked for is imported.
"""

import json
import os
import sys
from argparse import Action, RawDescriptionHelpFormatter
from importlib import import_module
from typing import Any, NoReturn, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliPositionalArg, CliSettingsSource, SettingsError

VERBS = {
    "serve": ("serve", "serve the models of a repository over HTTP"),
    "classify": ("classify", "classify images from the command line, without a server"),
    "train": ("training.train", "train a network: supervised, then hybrid reinforcement learning"),
    "teach": ("training.teach", "train a wide network whose answers teach those that are served"),
    "reproduce": ("training.reproduce", "train the rows of the paper's table and its ablations, one results file each"),
    "report": ("training.report", "draw the table and the figure of reproduce's results files"),
    "average": ("training.average", "write the mean of several checkpoints' weights"),
    "evaluate": ("measuring.evaluate", "measure accuracy and saved computation, into the checkpoint's config.json"),
    "cascade": ("measuring.cascade", "build a cascade of checkpoints: unsure images go on to the next one"),
    "analyze": ("measuring.analyze", "show what a checkpoint does with images, as a report with pictures"),
    "import": ("import_checkpoint", "turn a checkpoint of the public code into one of ours"),
    "export": ("export", "write a checkpoint as ONNX"),
    "bench": ("measuring.bench", "measure the engines' speed on this machine"),
    "verify-gpu": ("measuring.verify_gpu", "check the GPU engines' answers, speed and energy on this machine"),
}
POSITIONAL = get_args(CliPositionalArg)[1]
"""The mark of an option that has a place on the command line in place of a flag."""


class HelpFormatter(RawDescriptionHelpFormatter):
    """Leaves out what pydantic-settings says of an option whose default its description puts into words."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help and action.help.replace(" (default: None)", "")


def main(arguments: list[str] | None = None) -> None:
    """Run the verb in ``arguments``; exits with 2 for a wrong option and 1 for what went wrong."""
    verb, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(overview())
        return
    if verb not in VERBS:
        leave(f"no verb {verb!r}; one of {', '.join(VERBS)}", 2)
    try:
        read_options(verb, options).cli_cmd()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # An exception that this code defines was raised for a person to read; any other is a defect of ours.
        ours = type(error).__module__.partition(".")[0] in ("models", "service")
        if not ours and not isinstance(error, OSError):
            raise
        leave(str(error), 1)


def overview() -> str:
    lines = [f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(["usage: skipnet VERB [--option …]", "", *lines, "", "skipnet VERB --help lists its options."])


def read_options(verb: str, arguments: list[str]) -> Any:
    """Return the verb's options, from ``arguments``, else the environment, else their defaults."""
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
        leave("; ".join(wrong_option(command, problem) for problem in error.errors()), 2)
    except SettingsError as error:
        leave(no_json(command) or str(error), 2)


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


def wrong_option(command: type[BaseSettings], problem: Any) -> str:
    if not problem["loc"]:
        return f"options: {problem['msg']}"
    name = str(problem["loc"][0])
    field = command.model_fields[name]
    named = name.upper() if POSITIONAL in field.metadata else f"--{name.replace('_', '-')}"
    if problem["type"] == "missing":
        return f"{named} is missing"
    if problem["type"] == "string_pattern_mismatch":
        # The description says in words what the pattern does.
        wrong = f"{problem['input']!r} does not fit: {field.description}"
    elif field.repr:
        wrong = f"{problem['msg']}, not {problem['input']!r}"
    else:  # A secret.
        wrong = f"{problem['msg']}: {field.description}"
    return f"{named} (SKIPNET_{name.upper()}): {wrong}"


def no_json(command: type[BaseSettings]) -> str:
    """Return which variables of the environment have to be JSON and are not; what stands in them may be a secret."""
    wrong = []
    for name, field in command.model_fields.items():
        text = os.environ.get(variable := f"SKIPNET_{name.upper()}")
        if text is None or field.annotation != list[str]:
            continue
        try:
            json.loads(text)
        except ValueError:
            wrong.append(f"{variable} has to be a JSON list, such as '[\"TEXT\"]': {field.description}")
    return "; ".join(wrong)


def leave(message: str, code: int) -> NoReturn:
    print(f"skipnet: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
