"""skipnet reproduce"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models.data.datasets import VALIDATION_IMAGES
from models.training.setup.options import NetworkOptions
from service.cli.training.options import (
    VALIDATION_IMAGES_TO_REPORT,
    RunOptions,
    progress_bar,
    resumable,
)

if TYPE_CHECKING:
    from models.experiments.plan import Plan
    from models.experiments.results import Result
    from models.experiments.row import Row, Schedule


class Reproduce(RunOptions, NetworkOptions):
    """Train rows of the paper's table, its ablations or our recipes, and write a results file for each.

    The same command resumes a killed run.

    A short run: skipnet reproduce cifar10 --rows hrl-70 --seeds 0 --epochs 1 --limit 1280 --output try
    """

    dataset: CliPositionalArg[Literal["cifar10", "cifar100", "svhn"]] = Field(description="data set to train on")
    depth: int = Field(
        38, description="layers of the networks: 38, 74, 110 or 152; 14, 20, 26 or 32 for row static-resnet"
    )
    rows: Annotated[str, Field(description="names of rows or groups, separated by commas; --show-rows lists them")] = (
        "table"
    )
    schedule: Literal["paper", "short"] = Field(
        "short", description="recipes: the paper's, or shorter ones for two cores"
    )
    seeds: str | None = Field(
        None, pattern=r"^\d{1,9}(,\d{1,9})*$", description="seeds, separated by commas; default: each row's own"
    )
    output: Path = Field(Path("runs/reproduce"), description="folder of the runs")
    results: Path | None = Field(None, description="folder of the results files; default: results in --output")
    choose: bool = Field(False, description="measure on 5,000 validation images, not on the test images")
    held_out: int | None = Field(
        None, ge=1, description="training images for validation; default: 1000, with --choose 5000"
    )
    start: Path | None = Field(None, description="checkpoint from which rows start, instead of another row's")
    show_rows: bool = Field(False, description="list the rows of every group, or those of --rows, without training")

    def cli_cmd(self) -> None:
        from models.architectures import find_architecture
        from models.experiments.runner import reproduce
        from models.training.distributed.group import require_one_process

        require_one_process("reproduce")
        find_architecture(f"{self.dataset}_resnet_{self.depth}")
        plan = self.plan()
        seeds = None if self.seeds is None else [int(seed) for seed in self.seeds.split(",")]
        runs = plan.runs(self.rows.split(","), seeds)
        if self.show_rows and "rows" not in self.model_fields_set:
            show_groups(self.schedule)
            return
        if self.show_rows:
            print("\n".join(dict.fromkeys(describe(row) for row, _ in runs)))
            return
        plan.check_architectures(runs)
        self.yield_processor()
        for row, seed in runs:
            print(f"{plan.name(row.name, seed)}: {row.title}", flush=True)
            with resumable():
                result = reproduce(plan, row, seed, save_every=self.save_every, show=progress_bar)
            print(describe_result(result), flush=True)

    def plan(self) -> "Plan":
        """Return the folders and the options of the rows' runs."""
        from models.experiments.plan import Plan

        held_out = self.held_out or (VALIDATION_IMAGES if self.choose else VALIDATION_IMAGES_TO_REPORT)
        depth = None if self.depth == 38 else self.depth
        options = {"depth": depth, "epochs": self.epochs, "limit": self.limit, "start": self.start}
        command = f"skipnet reproduce {self.dataset} --schedule {self.schedule} --held-out {held_out}"
        command += " --choose" * self.choose
        command += "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
        return Plan(
            dataset=self.dataset,
            depth=self.depth,
            schedule=self.schedule,
            shared=self,
            held_out=held_out,
            output=self.output,
            results=self.results or self.output / "results",
            choose=self.choose,
            command=command,
            start=self.start,
        )


def show_groups(schedule: "Schedule") -> None:
    from models.experiments.catalogue import all_groups

    for group, rows in all_groups(schedule).items():
        print(f"{group}:", *map(describe, rows), "", sep="\n")


def describe(row: "Row") -> str:
    seeds = ", ".join(map(str, row.seeds))
    changes = ", ".join(f"{name} {value}" for name, value in row.changes.items() if name != "operating_points")
    start = f"from {row.start}" if row.start else "from scratch"
    return f"{row.name:<34} {row.title}; {row.routing}, {row.stage} {start}, seeds {seeds}; {changes or row.recipe}"


def describe_result(result: "Result") -> str:
    figures = result.figures
    return (
        f"{figures.split}: accuracy {figures.accuracy:.2%}, computation percentage "
        f"{figures.computation_percentage:.1f}, MACs {figures.macs / figures.dense_macs:.1%} of dense"
    )
