"""Model soups: their weights, the networks that they refuse, and their card."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.architectures import find_architecture
from models.checkpoint import CalibrationPoint, Config, read_checkpoint, write_checkpoint
from models.errors import UserError
from models.model_card.card import draw_stages
from models.model_card.training_commands import list_commands
from models.persistence.training_record import TrainedStage
from models.preprocessing import InputSpec
from models.training.soup import make_soup
from service.cli.main import main

NAME = "cifar10_rnn_gate_38"
SP = {"stage": "sp", "name": "distilled", "epochs": 4, "batch": 128, "rate": 0.1, "schedule": "one_cycle"}
SP |= {"weight_decay": 0.0005, "distillation_weight": 0.9}
HRL = SP | {"stage": "hrl", "rate": 0.003}


def write(folder: Path, seed: int, architecture: str = NAME, labels: int = 10, **training: Any) -> Path:
    torch.manual_seed(seed)
    network = find_architecture(architecture).build(labels)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
    about = {"dataset": "cifar10", "validation_images": 1000, "seed": 0, "stages": [SP, HRL]} | training
    config = Config(
        architecture=architecture,
        labels=[str(label) for label in range(labels)],
        input=InputSpec(height=32, width=32, resize=32, mean=(0, 0, 0), std=(1, 1, 1)),
        execute_threshold=0.9,
        calibration=[CalibrationPoint(threshold=0.5, accuracy=1, computation_percentage=50, mac_share=0.5)],
        training=about,
        code="test",
    )
    write_checkpoint(folder, network, config)
    return folder


def test_every_weight_and_statistic_of_a_soup_is_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in range(3)]
    main(["average", str(tmp_path / "mean"), *map(str, folders)])
    assert "the mean of 3 checkpoints" in capsys.readouterr().out
    mean = read_checkpoint(tmp_path / "mean")
    states = [read_checkpoint(folder).network.state_dict() for folder in folders]
    for name, value in mean.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(state[name] for state in states) / 3, msg=name)
    # Measurements of the first network do not hold for the soup.
    assert (mean.config.execute_threshold, mean.config.calibration, mean.config.evaluation) == (0.5, [], None)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"architecture": "cifar10_feedforward_38"}, "their architecture is not the same"),
        ({"labels": 9}, "their labels is not the same"),
        ({"dataset": "svhn"}, "dataset is cifar10 of one, svhn of the other"),
        ({"validation_images": 5000}, "validation images is 1000 of one, 5000 of the other"),
    ],
)
def test_networks_that_differ_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    first, second = write(tmp_path / "first", 0), write(tmp_path / "second", 1, **other)
    with pytest.raises(UserError, match=message):
        make_soup([first, second], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_single_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["average", str(tmp_path / "mean"), str(write(tmp_path / "first", 0))])
    assert left.value.code == 1
    assert "two checkpoints or more: name another" in capsys.readouterr().err


def test_the_commands_train_the_shared_stages_once(tmp_path: Path) -> None:
    """The second network continues after SP and HRL of the first, the third after SP. Then the soup is trained."""
    more, other = HRL | {"epochs": 8}, HRL | {"rate": 0.01}
    first, second = write(tmp_path / "first", 0), write(tmp_path / "second", 1, stages=[SP, HRL, more])
    third = write(tmp_path / "third", 2, stages=[SP, other])
    make_soup([first, second, third], tmp_path / "mean")
    config = read_checkpoint(tmp_path / "mean").config
    stages = (*config.training.stages, TrainedStage(**HRL | {"epochs": 2}))
    config = config.model_copy(update={"training": config.training.model_copy(update={"stages": stages})})
    teach, sp, hrl, more_hrl, other_hrl, mean, last = list_commands(config)
    assert teach.startswith("skipnet teach cifar10")
    assert f"--init runs/{NAME}/sp" in hrl and "--output" not in hrl
    assert f"--init runs/{NAME}/hrl" in more_hrl and more_hrl.endswith(f"--output runs/{NAME}_2")
    assert f"--init runs/{NAME}/sp" in other_hrl and other_hrl.endswith(f"--output runs/{NAME}_3")
    assert mean == f"skipnet average runs/{NAME}_soup runs/{NAME}/hrl runs/{NAME}_2/hrl runs/{NAME}_3/hrl"
    assert "--epochs 2" in last and f"--init runs/{NAME}_soup " in last
    rows = draw_stages(stages, NAME)
    assert [row.split("|")[2].strip() for row in rows] == [
        "distilled", "distilled", "distilled, network 2", "distilled, network 3", "", "distilled",
    ]  # fmt: skip
    assert rows[4].startswith("| model soup of 3 networks |")
    assert sp.count("--init") == 0
