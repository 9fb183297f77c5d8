"""skipnet bench"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from models import SHIPPED
from service.cli.measuring.text_table import NUMBERS, SHARES, heading, line, numbers
from service.settings import Options

if TYPE_CHECKING:
    from models.benchmark.subject import Subject
    from models.benchmark.suite import Row


class Bench(Options):
    """Measure time against multiply-adds: routed engines, the best dense engine and the public code's masked way.

    Every number is a share of the best dense engine's in the same run. Training steps are measured against the
    public code's way and against masking. Lists are separated by commas.
    """

    parts: str = Field(
        "engines,training",
        pattern="^(engines|training|engines,training)$",
        description="what to measure: engines, training or engines,training",
    )
    train: str = Field("cifar10_rnn_gate_38", description="architecture whose training steps are measured")
    model: str = Field(
        "cifar10_rnn_gate_38,cifar10_rnn_gate_110", description="architectures to measure with forced routes"
    )
    checkpoint: Path | None = Field(
        None, description="checkpoint measured with its own routing, given --data; default: the one that serve serves"
    )
    dataset: str | None = Field(None, description="its data set; default: the one that it was trained on")
    data: Path | None = Field(None, description="folder of the checkpoint's data set, for images to route")
    engines: Annotated[str, Field(description="routed engines")] = "native,onnxruntime"
    batches: str = Field("1,8,32", pattern=NUMBERS, description="batch sizes, for instance 1,8,32")
    bench_threads: str = Field("1", pattern=NUMBERS, description="CPU threads, for instance 1,2")
    shares: str = Field(
        "0,0.25,0.5,0.75,1", pattern=SHARES, description="forced shares of the gated blocks, for instance 0,0.5,1"
    )
    size: int | None = Field(None, ge=32, description="side of the images; default: the architecture's")
    seconds: float = Field(5.0, gt=0, description="seconds for each batch size and thread count")
    output: Path | None = Field(None, description="folder for bench.json, table.md, curve.svg, training.json")

    def cli_cmd(self) -> None:
        from models.machine import describe_machine

        machine = describe_machine()
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        if "engines" in self.parts:
            self.measure_engines(machine)
        if "training" in self.parts:
            self.measure_training(machine)

    def measure_engines(self, machine: dict[str, str]) -> None:
        from models.benchmark.curve import draw_curve
        from models.benchmark.markdown_table import draw_table
        from models.benchmark.suite import run_suite

        print(heading())
        rows: list[Row] = []
        for subject in self.subjects():
            rows += run_suite(
                subject,
                engines=self.engines.split(","),
                batches=numbers(self.batches),
                threads=numbers(self.bench_threads),
                shares=[float(share) for share in self.shares.split(",")],
                seconds=self.seconds,
                report=lambda row: print(line(row), flush=True),
            )
        if self.output is not None:
            write_json(self.output / "bench.json", {"machine": machine, "rows": [row.as_dict() for row in rows]})
            (self.output / "table.md").write_text(draw_table(rows))
            alone = [row for row in rows if row.batch == 1 and row.threads == 1]
            (self.output / "curve.svg").write_text(draw_curve(alone, f"Batch 1, one thread, {machine['processor']}"))

    def measure_training(self, machine: dict[str, str]) -> None:
        from models.benchmark.training_steps import compare_steps

        rows = []
        for comparison in compare_steps(self.train, 6 * self.seconds, 1):
            print(
                f"{self.train}, batch 128, images/s: {comparison.step} {comparison.images_per_second:.0f}, "
                f"{comparison.rival} {comparison.rival_images_per_second:.0f}; share of its time "
                f"{comparison.time_share:.3f} ({comparison.time_share_low:.3f}-{comparison.time_share_high:.3f})",
                flush=True,
            )
            rows.append(comparison.as_dict())
        if self.output is not None:
            document = {"machine": machine, "architecture": self.train, "batch": 128, "rows": rows}
            write_json(self.output / "training.json", document)

    def subjects(self) -> "list[Subject]":
        """Return the architectures with random weights, and the checkpoint where there are images for it."""
        from models.benchmark.subject import forced_subject, routed_subject
        from models.checkpoint import find_version, read_checkpoint
        from models.data.datasets import find_dataset
        from models.data.source import read_source

        most = max(numbers(self.batches))
        found = [forced_subject(name, most, self.size) for name in filter(None, self.model.split(","))]
        if self.data:
            checkpoint = read_checkpoint(self.checkpoint or find_version(SHIPPED, None, None))
            dataset = find_dataset(self.dataset or checkpoint.config.training.get("dataset", "(none named)"))
            found.append(routed_subject(checkpoint, read_source(dataset, "test", self.data)))
        return found


def write_json(file: Path, document: dict[str, object]) -> None:
    file.write_text(json.dumps(document, indent=1) + "\n")
