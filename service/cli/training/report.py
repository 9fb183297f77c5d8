"""skipnet report"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Report(Options):
    """Print the table of results files. With --output, write it and the chart of accuracy over computation."""

    results: CliPositionalArg[list[Path]] = Field(
        [], description="results files, or folders of them; default: runs/reproduce/results"
    )
    output: Path | None = Field(None, description="folder for table.md and curve.svg")

    def cli_cmd(self) -> None:
        from models.experiments.results import read_results
        from models.experiments.results_curve import draw_curve
        from models.experiments.results_table import draw_table

        results = read_results(self.results or [Path("runs/reproduce/results")])
        table = draw_table(results)
        print(table, end="")
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "table.md").write_text(table)
            (self.output / "curve.svg").write_text(draw_curve(results))
