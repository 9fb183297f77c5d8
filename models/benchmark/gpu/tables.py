"""The tables of `skipnet verify-gpu` as Markdown."""

from models.benchmark.gpu_checks import Check
from models.benchmark.markdown_table import draw_table
from models.benchmark.suite import Measurement

HEADING = "| network | engine | requirement | met | found |\n|---|---|---|---|---|"


def draw_tables(machine: dict[str, str], checks: list[Check], measurements: list[Measurement]) -> str:
    """Return the machine, the checks and the measurements as Markdown."""
    parts = ["# GPU engines on this machine\n", ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"]
    if checks:
        parts.append("## Outputs\n")
        lines = [
            f"| {check.network} | {check.engine} | {check.demand} | {verdict(check)} | {check.found} |"
            for check in checks
        ]
        parts.append("\n".join([HEADING, *lines]) + "\n")
    if measurements:
        parts += ["## Time and energy\n", draw_table(measurements)]
    return "\n".join(parts)


def verdict(check: Check) -> str:
    """Return whether a check passed."""
    return "yes" if check.passed else "**no**"
