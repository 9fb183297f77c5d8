"""The tables of `skipnet verify-gpu` as Markdown."""

from collections.abc import Sequence

from models.benchmark.gpu.checks import Check
from models.benchmark.gpu.time_split import Split
from models.benchmark.markdown_table import draw_table
from models.benchmark.suite import Measurement

SPLIT_HEADING = (
    "| network | executed blocks | engine | images | thread blocks | ms per batch | Python | copy | launch | kernel |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
HEADING = "| network | engine | requirement | met | found |\n|---|---|---|---|---|"


def draw_tables(
    machine: dict[str, str],
    checks: list[Check],
    measurements: list[Measurement],
    splits: Sequence[Split] = (),
    conditions: dict[str, float] | None = None,
) -> str:
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
    if splits:
        parts += ["## Time in parts\n", "\n".join([SPLIT_HEADING, *map(split_line, splits)]) + "\n"]
    if conditions:
        costs = ", ".join(f"{name} {cost:.2f} us" for name, cost in conditions.items())
        parts += [f"One condition of a CUDA graph: {costs}.\n"]
    return "\n".join(parts)


def split_line(split: Split) -> str:
    """Return a row of the table of times in parts."""
    times = " | ".join(f"{value:.3f}" for value in (split.total, split.python, split.copy, split.launch, split.kernel))
    start = f"| {split.network} | {split.routing} | {split.engine} | {split.batch:,} | {split.thread_blocks or ''} |"
    return f"{start} {times} |"


def verdict(check: Check) -> str:
    """Return whether a check passed."""
    return "yes" if check.passed else "**no**"
