"""skipnet bench"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models import SHIPPED
from models.errors import UserError
from service.cli.measuring.text_table import NUMBERS, SHARES, heading, line, numbers
from service.cli.model_argument import find_checkpoint
from service.settings import Options

if TYPE_CHECKING:
    from models.benchmark.subject import Subject
    from models.benchmark.suite import Measurement
    from models.checkpoint import Checkpoint

ARCHITECTURES = "cifar10_rnn_gate_38,cifar10_rnn_gate_110"


class Bench(Options):
    """Measure the time of the engines and the MACs that they execute.

    `skipnet bench MODEL --data FOLDER` measures a model with its own decisions on images of its data set. Without
    --data the share of executed blocks is forced. A cascade needs --data. Without MODEL it measures architectures with
    random weights, and training steps. Lists are separated by commas.
    """

    models: CliPositionalArg[list[str]] = Field(
        [], description="models to measure: names in the repository, folders of a model or a checkpoint, architectures"
    )
    model_repository: Path = Field(SHIPPED, description="folder of <model>/<version>/ checkpoints")
    parts: str | None = Field(
        None,
        pattern="^(engines|training|engines,training)$",
        description="engines, training or engines,training; default: engines if MODELS are given, else both",
    )
    train: str = Field("cifar10_rnn_gate_38", description="architecture whose training steps are measured")
    model: str | None = Field(
        None,
        description="architectures to measure with random weights and forced routes; default, if no MODELS are given: "
        f"{ARCHITECTURES}",
    )
    checkpoint: Path | None = Field(
        None, description="checkpoint folder to measure with its own decisions, given --data; default: the one served"
    )
    dataset: str | None = Field(None, description="data set of --data; default: the one that the model was trained on")
    data: Path | None = Field(None, description="folder of the data set; its test images decide the routes")
    engines: str = Field("native,native_int16,onnxruntime", description="routed engines")
    batches: str = Field("1,8,32", pattern=NUMBERS, description="batch sizes, for instance 1,8,32")
    bench_threads: str = Field("1", pattern=NUMBERS, description="CPU threads, for instance 1,2")
    shares: str = Field(
        "0,0.25,0.5,0.75,1",
        pattern=SHARES,
        description="forced shares of executed gated blocks, for instance 0,0.5,1; a model is also measured at its own "
        "mean share",
    )
    size: int | None = Field(None, ge=32, description="side of the images; default: the architecture's")
    others: bool = Field(
        True, description="also measure the dense network in int8, in OpenVINO (if installed) and with torch.compile"
    )
    seconds: float = Field(5.0, gt=0, description="seconds for each batch size and thread count")
    output: Path | None = Field(None, description="folder for bench.json, table.md, curve.svg, training.json")

    def cli_cmd(self) -> None:
        from models.machine import describe_machine
        from models.plotting import require_plotting

        parts = self.parts or ("engines" if self.models else "engines,training")
        if self.output is not None:
            if "engines" in parts:
                require_plotting()
            self.output.mkdir(parents=True, exist_ok=True)
        # A wrong model name ends the command before the measurements.
        cascades, names = self.split_models() if "engines" in parts else ([], [])
        subjects = self.subjects(names) if "engines" in parts else []
        machine = describe_machine()
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        if cascades:
            self.measure_cascades(machine, cascades)
        if subjects:
            self.measure_engines(machine, subjects)
        if "training" in parts:
            self.measure_training(machine)

    def measure_engines(self, machine: dict[str, str], subjects: "list[tuple[Subject, list[float]]]") -> None:
        """Measure the subjects, each with its forced shares. Print the table and write it to --output."""
        from models.benchmark.curve import draw_curve
        from models.benchmark.markdown_table import draw_table
        from models.benchmark.suite import run_suite

        print(heading())
        found: list[Measurement] = []
        for subject, shares in subjects:
            found += run_suite(
                subject,
                engines=self.engines.split(","),
                batches=numbers(self.batches),
                threads=numbers(self.bench_threads),
                shares=shares,
                seconds=self.seconds,
                others=self.others,
                progress=lambda measurement: print(line(measurement), flush=True),
            )
        if self.output is not None:
            write_json(self.output / "bench.json", {"machine": machine, "rows": [each.as_dict() for each in found]})
            (self.output / "table.md").write_text(draw_table(found), "utf-8")
            single = [each for each in found if each.batch == 1 and each.threads == 1]
            chart = draw_curve(single, f"Batch 1, one thread, {machine['processor']}")
            (self.output / "curve.svg").write_text(chart, "utf-8")

    def measure_cascades(self, machine: dict[str, str], folders: list[Path]) -> None:
        """Measure the latency of cascades on their test images. Print the table and write it to --output."""
        from models.benchmark.cascade import cascade_images, draw_cascade_table, time_cascade
        from models.cascade.config import read_cascade
        from models.data.datasets import find_dataset
        from models.data.source import read_source

        for folder in folders:
            cascade = read_cascade(folder)
            known = cascade.config.evaluation
            dataset = find_dataset(self.dataset or (known.dataset if known else "(none named)"))
            images = cascade_images(cascade, read_source(dataset, "test", self.data))
            timings = [
                timing
                for threads in numbers(self.bench_threads)
                for batch in numbers(self.batches)
                for timing in time_cascade(cascade, images, batch, threads)
            ]
            table = draw_cascade_table(timings)
            print(table)
            if self.output is not None:
                rows = [timing.as_dict() for timing in timings]
                write_json(self.output / f"{cascade.name}.json", {"machine": machine, "rows": rows})
                (self.output / f"{cascade.name}.md").write_text(f"{table}\n", "utf-8")

    def measure_training(self, machine: dict[str, str]) -> None:
        """Measure training steps against the public code and against masking."""
        from models.benchmark.training_steps import compare_steps

        found = []
        for comparison in compare_steps(self.train, 6 * self.seconds, 1):
            print(
                f"{self.train}, batch 128, images/s: {comparison.step} {comparison.images_per_second:.0f}, "
                f"{comparison.rival} {comparison.rival_images_per_second:.0f}; time relative to it "
                f"{comparison.time_share:.3f} ({comparison.time_share_low:.3f}-{comparison.time_share_high:.3f})",
                flush=True,
            )
            found.append(comparison.as_dict())
        if self.output is not None:
            document = {"machine": machine, "architecture": self.train, "batch": 128, "rows": found}
            write_json(self.output / "training.json", document)

    def split_models(self) -> tuple[list[Path], list[str]]:
        """Return the folders of the models that are cascades, and the names of the others."""
        from models.checkpoint import CheckpointError, is_cascade

        cascades, names = [], []
        for name in self.models:
            try:
                folder = find_checkpoint(name, self.model_repository)
            except CheckpointError:  # It may be an architecture.
                names.append(name)
            else:
                if is_cascade(folder):
                    cascades.append(folder)
                else:
                    names.append(name)
        if cascades and self.data is None:
            raise UserError("a cascade is measured on images of its data set: give their folder by --data")
        return cascades, names

    def subjects(self, names: list[str]) -> "list[tuple[Subject, list[float]]]":
        """Return the models ``names`` and the architectures to measure, each with its forced shares."""
        from models.benchmark.subject import forced_subject
        from models.checkpoint import read_checkpoint
        from models.model_repository import find_version

        image_count = max(numbers(self.batches))
        shares = [float(share) for share in self.shares.split(",")]
        found = [self.model_subject(name, image_count, shares) for name in names]
        architectures = self.model if self.model is not None else "" if self.models else ARCHITECTURES
        found += [(forced_subject(name, image_count, self.size), shares) for name in architectures.split(",") if name]
        if self.checkpoint or (self.data and not self.models):
            checkpoint = read_checkpoint(self.checkpoint or find_version(self.model_repository, None, None))
            if self.data:
                found.append((self.routed(checkpoint, self.data), shares))
        return found

    def model_subject(self, name: str, image_count: int, shares: list[float]) -> "tuple[Subject, list[float]]":
        """Return a model by name or folder, else an architecture by name, and its forced shares."""
        from models.architectures import UnknownArchitecture, find_architecture
        from models.benchmark.subject import executed_share, forced_checkpoint, forced_subject
        from models.checkpoint import CheckpointError, read_checkpoint

        try:
            checkpoint = read_checkpoint(find_checkpoint(name, self.model_repository))
        except CheckpointError:
            try:
                find_architecture(name)
            except UnknownArchitecture:
                pass
            else:
                return forced_subject(name, image_count, self.size), shares
            raise
        if self.data:
            return self.routed(checkpoint, self.data), shares
        own = executed_share(checkpoint)
        if own is not None:
            print(f"{checkpoint.name} executes {own:.0%} of its gated blocks on average; --data measures its decisions")
        known = {f"{share:.0%}" for share in shares}
        added = [] if own is None or f"{own:.0%}" in known else [own]
        return forced_checkpoint(checkpoint, image_count), sorted([*shares, *added])

    def routed(self, checkpoint: "Checkpoint", data: Path) -> "Subject":
        """Return a checkpoint with test images of its data set."""
        from models.benchmark.subject import routed_subject
        from models.data.datasets import find_dataset
        from models.data.source import read_source

        dataset = find_dataset(self.dataset or checkpoint.config.training.dataset or "(none named)")
        return routed_subject(checkpoint, read_source(dataset, "test", data))


def write_json(file: Path, document: dict[str, object]) -> None:
    """Write a document as JSON."""
    file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
