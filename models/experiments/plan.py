"""The folders of the runs of rows, and the options of each run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.architectures import find_architecture
from models.errors import UserError
from models.experiments.catalogue import find_row, find_runs
from models.experiments.row import Row, Schedule
from models.persistence.legacy_names import ROWS
from models.training.distillation.location import parse_teacher, teacher_file, teacher_folder
from models.training.setup.options import JobOptions, NetworkOptions


@dataclass(frozen=True)
class Plan:
    """The folders and the options of the rows' runs.

    ``shared`` are the options that all rows have in common. ``depth`` is the networks' number of layers. ``held_out``
    is the number of validation images. ``output`` is the folder of the runs, and ``results`` that of the results files.
    ``choose`` measures only on the validation images. ``command`` is the command line without the row and the seed.
    ``start`` is a checkpoint from which rows start, instead of another row's checkpoint.
    """

    dataset: str
    depth: int
    schedule: Schedule
    shared: NetworkOptions
    held_out: int
    output: Path
    results: Path
    choose: bool
    command: str
    start: Path | None = None

    def runs(self, names: Iterable[str], seeds: Sequence[int] | None) -> list[tuple[Row, int]]:
        """Return rows and seeds in the order to run them.

        Raises UserError for an unknown name.
        """
        return find_runs(names, self.schedule, seeds, starts=self.start is None)

    def name(self, row: str, seed: int, depth: int | None = None) -> str:
        """Return the name of a run, which names its folder and its results file."""
        network = f"{self.dataset}_{depth or self.depth}"
        return f"{network}/{self.schedule}{'-choose' if self.choose else ''}/{row}-{seed}"

    def folder(self, row: str, seed: int, depth: int | None = None) -> Path:
        """Return the folder of a run. If only the folder under the row's earlier name exists, return that."""
        folder, *earlier = (self.output / self.name(name, seed, depth) for name in (row, *earlier_names(row)))
        return next((each for each in earlier if each.exists() and not folder.exists()), folder)

    def results_file(self, row: str, seed: int) -> Path:
        """Return the results file of a run. If only the file under the row's earlier name exists, return that."""
        file, *earlier = (self.results / f"{self.name(name, seed)}.json" for name in (row, *earlier_names(row)))
        return next((each for each in earlier if each.exists() and not file.exists()), file)

    def checkpoint(self, row: str, seed: int, depth: int | None = None) -> Path:
        """Return the folder of the checkpoint that a run writes."""
        return self.folder(row, seed, depth) / find_row(row, self.schedule).stage

    def options(self, row: Row, seed: int) -> JobOptions:
        """Return the options of a run's training."""
        return JobOptions(
            arch=f"{self.dataset}_{row.routing}_{self.depth}",
            dataset=self.dataset,
            stages=row.stage,
            recipe=row.recipe,
            changes=row.changes,
            init=self.starting_point(row, seed),
            teacher=self.teacher(row),
            seed=seed,
            output=self.folder(row.name, seed),
            held_out=self.held_out,
            data=self.shared.data,
            limit=self.shared.limit,
            device=self.shared.device,
            epochs=self.shared.epochs,
            compile=self.shared.compile,
            precision=self.shared.precision,
        )

    def starting_point(self, row: Row, seed: int) -> Path | None:
        """Return the checkpoint that a run starts from, or None for random weights."""
        if row.start is None or self.start is not None:
            return self.start if row.start else None
        return self.checkpoint(row.start, row.seed_of_start(seed), row.start_depth)

    def start_name(self, row: Row) -> str | None:
        """Return the name that results files have for the checkpoint from which a row starts."""
        if row.soup:
            return " + ".join(row.parts)
        if row.start is None or self.start is not None:
            return str(self.start) if row.start else None
        return row.start if row.start_depth is None else f"{row.start} of {row.start_depth} layers"

    def check_architectures(self, runs: Iterable[tuple[Row, int]]) -> None:
        """Raise UserError if a row's network does not exist at this depth."""
        for row, seed in runs:
            find_architecture(self.options(row, seed).arch)

    def check_start(self, row: Row, options: JobOptions) -> None:
        """Raise UserError if the network that a row grows from is not shallower, or does not exist."""
        if row.start_depth is None or self.start is not None or options.init is None:
            return
        if self.depth <= row.start_depth:
            raise UserError(f"{row.name} grows from {row.start_depth} layers: choose a larger --depth, such as 110")
        if not options.init.exists():
            raise UserError(
                f"{row.name} grows from {options.init}, which does not exist: run the same command with "
                f"--depth {row.start_depth} --rows {row.start} first, or name a checkpoint with --start"
            )

    def teacher(self, row: Row) -> Path | None:
        """Return the teacher of a row, or None if the teacher is the row's start."""
        if row.teacher is None:
            return None
        if teacher := parse_teacher(row.teacher):
            network, file = teacher
            return teacher_file(teacher_folder(self.output, self.dataset, network), file)
        return self.checkpoint(row.teacher, 0)


def earlier_names(row: str) -> list[str]:
    """Return the names that a row had in earlier versions."""
    return [old for old, new in ROWS.items() if new == row]
