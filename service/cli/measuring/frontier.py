"""skipnet frontier"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models.errors import UserError
from service.settings import DeviceName, EngineName, Options

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine


class Frontier(Options):
    """Compare a cascade at many margins with other systems, on the test images.

    skipnet frontier models/repository/cifar10_cascade/2 --data DIR --rivals models/repository/other/1
    """

    cascade: CliPositionalArg[Path] = Field(description="folder <repository>/<model>/<version> of a cascade")
    rivals: list[Path] = Field([], description="checkpoints to compare as the first stage")
    budgets: list[float] = Field([41, 46, 60], description="millions of MACs at which all systems are compared")
    dataset: str | None = Field(None, description="data set; default: the one that the cascade was measured on")
    data: Path | None = Field(None, description="local folder of the data set; default: the hub")
    engine: EngineName = Field("auto", description="engine that runs the networks")
    device: DeviceName = Field("auto", description="auto, cpu, cuda or cuda:N")
    output: Path | None = Field(None, description="folder for frontier.md, frontier.svg and frontier.json")

    def cli_cmd(self) -> None:
        from models.cascade.config import read_cascade
        from models.cascade.frontier import measure_frontier
        from models.cascade.frontier_report import draw_budgets, draw_frontier, draw_points, write_points
        from models.checkpoint import code_version, is_cascade, read_checkpoint
        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.evaluation.metrics import prepared_batches
        from models.machine import describe_machine

        if not is_cascade(self.cascade):
            raise UserError(f"{self.cascade} is not a cascade; `skipnet evaluate --calibrate` gives a network's curve")
        cascade = read_cascade(self.cascade)
        rivals = [read_checkpoint(folder) for folder in self.rivals]
        known = cascade.config.evaluation
        dataset = find_dataset(self.dataset or (known.dataset if known else "(none named)"))
        source = read_source(dataset, "test", self.data).labelled_as(cascade.config.labels)
        batches = list(prepared_batches(source, cascade.config.input))
        points = measure_frontier(cascade, rivals, self.load, batches)
        tables = f"{draw_points(points)}\n\n{draw_budgets(points, [budget * 1e6 for budget in self.budgets])}\n"
        print(tables, end="")
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "frontier.md").write_text(tables)
            (self.output / "frontier.svg").write_text(draw_frontier(points, dataset.name))
            about = {"dataset": dataset.name, "split": "test", "images": len(source), "machine": describe_machine()}
            write_points(points, {**about, "code": code_version()}, self.output / "frontier.json")

    def load(self, checkpoint: "Checkpoint") -> "Engine":
        """Return the engine that the options ask for."""
        from models.engines import load_engine

        return load_engine(checkpoint, self.engine, self.device)
