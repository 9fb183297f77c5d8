"""Read data sets in the hub's schema through the Hugging Face ``datasets`` library, from the hub or parquet files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.datasets import DatasetInfo
from models.errors import UserError, needs_extra

if TYPE_CHECKING:
    from datasets import Dataset

GLOB_CHARACTERS = ("*", "?", "[", "::")
"""The library reads paths with these characters as patterns or chained URLs."""


class TableImages:
    """The images and labels of a table's columns. ``origin`` is the source of the table, for messages."""

    def __init__(self, table: "Dataset", dataset: DatasetInfo, origin: str) -> None:
        missing = {dataset.image_column, dataset.label_column} - set(table.column_names)
        if missing:
            raise UserError(
                f"{dataset.name} should have the columns {dataset.image_column} and {dataset.label_column}, "
                f"but {origin} has {', '.join(table.column_names)}"
            )
        self.table = table.cast_column(dataset.image_column, import_datasets().Image(decode=False))
        self.image_column, self.label_column, self.origin = dataset.image_column, dataset.label_column, origin
        self.classes = class_names(table, dataset)
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.table)

    def name(self, position: int) -> str:
        path = self.table[position][self.image_column]["path"]
        return f"image {position} of {self.origin}" + (f" ({path})" if path else "")

    def read(self, position: int) -> tuple[bytes, int]:
        entry = self.table[position]
        image = entry[self.image_column]
        if image is None:
            raise FileNotFoundError("the table has no image there")
        data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        return data, int(entry[self.label_column])


def load_from_hub(dataset: DatasetInfo, splits: Sequence[str]) -> TableImages:
    """Return splits of a data set on the hub, in order.

    Raises UserError if the hub cannot be reached.
    """
    datasets = import_datasets()
    try:
        tables = [datasets.load_dataset(dataset.hub, dataset.subset, split=split) for split in splits]
    except ConnectionError as error:
        raise UserError(f"{error}: try again, or name a local folder of its files with --data") from error
    return TableImages(joined(tables), dataset, f"{dataset.hub} {' and '.join(splits)}")


def find_parquet(data: Path, names: Sequence[str]) -> list[Path]:
    """Return the parquet files of the first of these splits that has any."""
    for name in names:
        if files := sorted([*data.glob(f"{name}.parquet"), *data.glob(f"{name}-*.parquet")]):
            return files
    return []


def read_parquet(dataset: DatasetInfo, splits: Sequence[Sequence[Path]], data: Path) -> TableImages:
    """Return the images of parquet files in the folder ``data``, the splits one after another.

    Raises UserError.
    """
    if any(part in str(data.absolute()) for part in GLOB_CHARACTERS):
        characters = " ".join(GLOB_CHARACTERS)
        raise UserError(f"parquet files cannot be read from {data}: rename the folder without {characters}")
    datasets = import_datasets()
    try:
        tables = [
            datasets.load_dataset("parquet", data_files=[str(file.absolute()) for file in files], split="train")
            for files in splits
        ]
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        names = ", ".join(file.name for files in splits for file in files)
        raise UserError(f"{names} of {data} cannot be read ({error}); copy it again") from error
    return TableImages(joined(tables), dataset, ", ".join(str(file) for files in splits for file in files[:1]))


def joined(tables: "list[Dataset]") -> "Dataset":
    return import_datasets().concatenate_datasets(tables) if len(tables) > 1 else tables[0]


def class_names(table: "Dataset", dataset: DatasetInfo) -> list[str]:
    """Return the data set's class names, else those of the table, else the numbers of its labels."""
    if dataset.classes:
        return list(dataset.classes)
    feature = table.features[dataset.label_column]
    if hasattr(feature, "names"):
        return list(feature.names)
    return [str(label) for label in range(1 + max(table[dataset.label_column]))]


def import_datasets() -> Any:
    """Return the ``datasets`` module, quiet.

    Raises UserError if the training extra is not installed.
    """
    with needs_extra("training", "reading data sets"):
        import datasets
    datasets.disable_progress_bars()
    # The library would report each use to the hub, even of local files.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets
