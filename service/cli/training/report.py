"""skipnet report"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Report(Options):
    """Draw the table of results files, and with --output the figure of accuracy over computation too."""

    results: CliPositionalArg[list[Path]] = Field(
        [], description="results files and folders of them; default: runs/reproduce/results"
    )
    output: Path | None = Field(None, description="folder for table.md and curve.svg")

    def cli_cmd(self) -> None:
        from models.experiments.results import read_results
        from models.experiments.results_table import draw_figure, draw_report

        results = read_results(self.results or [Path("runs/reproduce/results")])
        table = draw_report(results)
        print(table, end="")
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "table.md").write_text(table)
            (self.output / "curve.svg").write_text(draw_figure(results))
