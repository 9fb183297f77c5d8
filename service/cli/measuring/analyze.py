"""skipnet analyze"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import DeviceName, EngineName, Options

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine


class Analyze(Options):
    """Report which images and classes execute many blocks, how stable the decisions are, and how attacks change them.

    Writes report.html, README.md, analysis.json, charts (SVG) and contact sheets (PNG) to --output.
    """

    checkpoint: CliPositionalArg[Path] = Field(description="folder <repository>/<model>/<version>")
    data: CliPositionalArg[Path] = Field(description="local folder of the data set")
    output: Path = Field(description="folder for the report and its pictures")
    dataset: str | None = Field(None, description="data set; default: the one that the checkpoint was trained on")
    engine: EngineName = Field("auto", description="engine that runs the network")
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N")
    execute_threshold: float | None = Field(None, ge=0, le=1, description="default: the checkpoint's own")
    images: int = Field(10_000, ge=1, description="number of test images")
    altered: int = Field(1000, ge=1, description="number of images that also run in 46 altered copies each")
    attacked: int = Field(50, ge=0, description="number of images to attack; this is the slowest part")
    photos: bool = Field(True, description="show images of the data set; --no-photos for a report to publish")
    write: bool = Field(False, description="write the analysis into the checkpoint folder and its model card")

    def cli_cmd(self) -> None:
        import json

        from models.analysis.analyze import analyze
        from models.analysis.charts import draw_charts
        from models.analysis.contact_sheets import draw_sheets
        from models.analysis.pages import render_html, render_markdown
        from models.analysis.routes import Runner
        from models.analysis.sample import read_sample
        from models.analysis.schema import ANALYSIS
        from models.checkpoint import read_checkpoint
        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.model_card.card import write_card
        from models.persistence.atomic_file import whole_file
        from models.plotting import require_plotting

        require_plotting()
        checkpoint = read_checkpoint(self.checkpoint)
        config = checkpoint.config
        dataset = find_dataset(self.dataset or config.training.dataset or "(none named)")
        source = read_source(dataset, "test", self.data).labelled_as(config.labels)
        sample = read_sample(source, config.input, self.images)
        threshold = config.execute_threshold if self.execute_threshold is None else self.execute_threshold
        engine = self.load(checkpoint)
        try:
            runner = Runner(engine, config.input, threshold)
            print(f"{len(sample.labels)} images of {dataset.name}, engine {engine.name}", flush=True)
            outputs = runner.run(sample.pixels)
            analysis = analyze(
                checkpoint,
                runner,
                self.load,
                sample,
                outputs,
                dataset=dataset.name,
                split="test",
                altered=self.altered,
                attacked=self.attacked,
                progress=lambda text: print(text, flush=True),
            )
        finally:
            engine.close()
        self.output.mkdir(parents=True, exist_ok=True)
        charts = draw_charts(analysis, config.calibration)
        for name, chart in charts.items():
            (self.output / f"{name}.svg").write_text(chart, "utf-8")
        sheets = draw_sheets(sample, outputs, config.labels) if self.photos else {}
        for name, sheet in sheets.items():
            sheet.save(self.output / f"{name}.png")
        document = json.dumps(analysis.as_dict(), indent=1) + "\n"
        (self.output / ANALYSIS).write_text(document, "utf-8")
        (self.output / "report.html").write_text(render_html(analysis, charts, sheets), "utf-8")
        (self.output / "README.md").write_text(render_markdown(analysis, charts), "utf-8")
        print("report:", self.output / "report.html")
        if self.write:
            with whole_file(self.checkpoint / ANALYSIS) as file:
                file.write(document.encode())
            print("card:", write_card(self.checkpoint))

    def load(self, checkpoint: "Checkpoint") -> "Engine":
        """Return an engine of the options for a checkpoint."""
        from models.engines import load_engine

        return load_engine(checkpoint, self.engine, self.device, routing="branch")
