"""The report that `skipnet verify-gpu` leaves, as Markdown."""

from models.benchmark.gpu_checks import Check
from models.benchmark.markdown_table import draw_table
from models.benchmark.suite import Row


def draw_report(machine: dict[str, str], checks: list[Check], rows: list[Row]) -> str:
    """Return machine, checks and measurements, each as a table."""
    parts = ["# GPU engines on this machine\n", ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"]
    if checks:
        parts.append("## Answers\n")
        lines = [
            f"| {check.network} | {check.engine} | {check.demand} | {mark(check)} | {check.found} |" for check in checks
        ]
        parts.append("\n".join(["| network | engine | demand | | found |", "|---|---|---|---|---|", *lines]) + "\n")
    if rows:
        parts += ["## Time and energy\n", draw_table(rows)]
    return "\n".join(parts)


def mark(check: Check) -> str:
    return "yes" if check.passed else "**no**"
