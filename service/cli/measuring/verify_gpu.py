"""skipnet verify-gpu"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from models import SHIPPED
from models.errors import UserError
from service.cli.measuring.text_table import NUMBERS, SHARES, heading, line, numbers
from service.settings import DeviceName, Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models.benchmark.gpu.checks import Check
    from models.benchmark.gpu.time_split import Split
    from models.benchmark.subject import Subject
    from models.benchmark.suite import Measurement
    from models.checkpoint import Checkpoint
    from models.data.source import Source

FORCED = "cifar10_rnn_gate_38,cifar10_rnn_gate_110,imagenet_rnn_gate_50"
MOST_IMAGES = 64
"""The most distinct images of a measurement. A larger batch repeats them."""
ENGINES = ("persistent", "cuda_graph", "cuda_graph:mask")


class VerifyGpu(Options):
    """Check the outputs of the GPU engines and measure their speed and energy. Writes report.md and report.json."""

    device: DeviceName = Field("cuda", description="cuda or cuda:N; cpu runs the same functions without CUDA graphs")
    model_repository: Path = Field(SHIPPED, description="folder of <model>/<version>/ checkpoints to check")
    parity: Path | None = Field(None, description="folder of parity cases (.npz) of the public code")
    data: Path | None = Field(
        None, description="folder of the checkpoints' data set, or a folder with one sub-folder for each data set"
    )
    images: int | None = Field(None, ge=1, description="number of test images to compare decisions on; default: all")
    quick: bool = Field(
        False,
        description="ten minutes: outputs of 1, 265 and 1,024 images, time in parts (Python, copy, launch, kernel), "
        "conditions, training steps",
    )
    bench: bool = Field(True, description="also measure speed and energy, which needs a GPU")
    model: str = Field(FORCED, description="architectures to measure with forced routes")
    batches: str = Field("1,8,32,128,1024", pattern=NUMBERS, description="batch sizes, for instance 1,8,32")
    shares: str = Field(
        "0,0.25,0.5,0.75,1", pattern=SHARES, description="forced shares of executed gated blocks, for instance 0,0.5,1"
    )
    seconds: float = Field(10.0, gt=0, description="seconds for each network and batch size, without energy")
    output: Path = Field(Path("verify-gpu"), description="folder for report.md and report.json")

    def cli_cmd(self) -> None:
        import json
        from dataclasses import asdict

        from models.benchmark.gpu.tables import SPLIT_HEADING, draw_tables, split_line
        from models.engines.selection import find_device
        from models.machine import describe_gpu, describe_machine

        device = find_device(self.device, "cuda_graph")
        machine = describe_machine() | describe_gpu(device)
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        self.output.mkdir(parents=True, exist_ok=True)
        checks: list[Check] = []
        measurements: list[Measurement] = []
        splits: list[Split] = []
        conditions: dict[str, float] = {}

        def write() -> None:
            document = {
                "machine": machine,
                "checks": [asdict(check) for check in checks],
                "rows": [each.as_dict() for each in measurements],
                "splits": [asdict(split) for split in splits],
                "conditions": conditions,
            }
            (self.output / "report.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            page = draw_tables(machine, checks, measurements, splits, conditions)
            (self.output / "report.md").write_text(page, "utf-8")

        for check in self.quick_checks(device) if self.quick else self.checks(device):
            print(f"{'ok  ' if check.passed else 'FAIL'} {check.network}, {check.engine}: {check.found}", flush=True)
            checks.append(check)
            write()
        if self.quick:
            print(SPLIT_HEADING)
            for split in self.quick_times(device, conditions):
                print(split_line(split), flush=True)
                splits.append(split)
                write()
            write()
        elif self.bench and device != "cpu":
            print(heading())

            def add(measurement: "Measurement") -> None:
                print(line(measurement), flush=True)
                measurements.append(measurement)
                write()

            self.measure(device, add)
        print(f"written to {self.output}/report.md and report.json")
        failed = sum(not check.passed for check in checks)
        if failed:
            sys.exit(f"skipnet: {failed} of {len(checks)} checks failed")

    def checks(self, device: str) -> "Iterator[Check]":
        """Yield the checks of parity cases, checkpoints with gates, and training steps."""
        from functools import partial

        from models.benchmark.gpu.checks import check_checkpoint, check_parity, check_training
        from models.evaluation.metrics import prepared_batches

        cases = sorted(self.parity.glob("*.npz")) if self.parity else []
        if self.parity and not cases:
            raise UserError(f"{self.parity} holds no parity cases (*.npz): see --parity")
        for file in cases:
            yield from check_parity(file, device)
        for checkpoint in self.checkpoints():
            source = self.source(checkpoint)
            batches = partial(prepared_batches, source, checkpoint.config.input) if source else None
            yield from check_checkpoint(checkpoint, device, batches, self.images)
        if device != "cpu":
            yield from check_training(device)

    def quick_checks(self, device: str) -> "Iterator[Check]":
        """Yield the checks of the quick form: batch sizes, and training steps."""
        from models.benchmark.gpu.checks import check_training
        from models.benchmark.gpu.quick import compare_sizes

        for checkpoint in self.quick_checkpoints():
            yield from compare_sizes(checkpoint, device)
        if device != "cpu":
            yield from check_training(device)

    def quick_times(self, device: str, conditions: dict[str, float]) -> "Iterator[Split]":
        """Yield times in parts, and write the costs of conditions into ``conditions``."""
        from models.benchmark.gpu.conditions import condition_costs
        from models.benchmark.gpu.quick import split_times
        from models.engines.factory import describe

        try:
            conditions.update(condition_costs(device))
        except Exception as error:  # an error of torch or of the driver; the times can still be measured
            print(f"conditions are left out: {describe(error)}")
        yield from split_times(self.quick_checkpoints(), device)

    def quick_checkpoints(self) -> "list[Checkpoint]":
        """Return the newest versions of the networks that the quick form measures, or of all if it finds none."""
        from models.benchmark.gpu.quick import MODELS

        newest = {each.name: each for each in sorted(self.checkpoints(), key=lambda found: found.version)}
        return [newest[name] for name in MODELS if name in newest] or list(newest.values())

    def checkpoints(self) -> "list[Checkpoint]":
        from models.checkpoint import WEIGHTS, read_checkpoint

        folders = sorted(file.parent for file in self.model_repository.glob(f"*/*/{WEIGHTS}"))
        if not folders:
            raise UserError(f"{self.model_repository} holds no <model>/<version>/{WEIGHTS}: see --model-repository")
        return [read_checkpoint(folder) for folder in folders]

    def source(self, checkpoint: "Checkpoint") -> "Source | None":
        """Return the test images of a checkpoint's data set, or None if --data has none."""
        from models.data.datasets import find_dataset
        from models.data.source import read_source

        name = checkpoint.config.training.dataset
        if self.data is None or name is None:
            return None
        dataset = find_dataset(name)
        folder = self.data / dataset.name
        try:
            return read_source(dataset, "test", folder if folder.is_dir() else self.data)
        except UserError as error:
            print(f"no real images for {checkpoint.name}: {error}")
            return None

    def measure(self, device: str, progress: "Callable[[Measurement], None]") -> None:
        """Measure each architecture along forced routes.

        Measure each checkpoint along its own routes if there are images.
        """
        from models.benchmark.subject import forced_subject, routed_subject
        from models.benchmark.suite import run_suite

        image_count = min(MOST_IMAGES, max(numbers(self.batches)))
        subjects: list[Subject] = [forced_subject(name, image_count) for name in filter(None, self.model.split(","))]
        for checkpoint in self.checkpoints():
            source = self.source(checkpoint)
            if source is not None and checkpoint.network.gate_kind is not None:
                subjects.append(routed_subject(checkpoint, source))
        for subject in subjects:
            run_suite(
                subject,
                engines=list(ENGINES),
                batches=numbers(self.batches),
                threads=[1],
                shares=[float(share) for share in self.shares.split(",")],
                seconds=self.seconds,
                progress=progress,
                device=device,
            )
