"""skipnet quantize"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from service.settings import Options


class Quantize(Options):
    """Write a version whose blocks can run in 16-bit integers, on the CPU engine native_int16.

    The weights stay the same. config.json gets the scales of the integers, measured on validation images. It also gets
    the differences of decisions, labels and accuracy from float32 on other validation images.
    """

    checkpoint: CliPositionalArg[Path] = Field(description="folder <repository>/<model>/<version>")
    output: Path | None = Field(None, description="folder to write; default: the model's next version")
    data: Path | None = Field(None, description="local folder of the data set; default: the hub")
    calibration_images: int = Field(256, ge=1, description="number of validation images for the scales")
    most_lost: float = Field(0.3, ge=0, description="largest loss of accuracy, in points")
    most_decisions: float = Field(1.0, ge=0, le=100, description="largest share of changed decisions, in percent")
    link: bool = Field(False, description="link to the weights of CHECKPOINT instead of copying them")

    def cli_cmd(self) -> None:
        from models.checkpoint import read_checkpoint
        from models.data.datasets import find_dataset
        from models.data.source import read_source
        from models.data.validation_split import validation_source
        from models.evaluation.quantization import Allowed, quantize
        from models.model_card.quantized_version import write_version

        checkpoint = read_checkpoint(self.checkpoint)
        config = checkpoint.config
        row = find_dataset(config.training.dataset or "(none named)")
        train = read_source(row, "train", self.data).labelled_as(config.labels)
        validation = validation_source(train, config.training)
        allowed = Allowed(self.most_lost / 100, self.most_decisions / 100)
        quantized = quantize(checkpoint, validation, self.calibration_images, allowed)
        written = write_version(quantized, self.output, self.link)
        figures = quantized.config.quantization
        assert figures is not None
        print(
            f"{written}: on {figures.images} validation images {figures.decisions_changed:.3%} of the decisions and "
            f"{figures.labels_changed:.2%} of the labels change, accuracy {figures.float_accuracy:.2%} -> "
            f"{figures.accuracy:.2%}"
        )
