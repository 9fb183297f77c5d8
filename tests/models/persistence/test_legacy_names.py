"""Files of earlier versions are read under the current names of their values."""

from pathlib import Path

from models import SHIPPED
from models.checkpoint import Config, read_config, write_config
from models.persistence.legacy_names import KEYS, RECIPES, TEACHERS, current_names

STAGE = {
    "name": "taught",
    "stage": "sp",
    "open_bias": 0.0,
    "rungs": [{"share": 1.0, "threshold": 0.5, "target": 0.6}],
    "target": 0.5,
    "distil": 0.9,
    "teacher": "wider-answers",
}
RENAMED = {
    "name": "distilled",
    "stage": "sp",
    "gate_bias_init": 0.0,
    "operating_points": [{"share": 1.0, "threshold": 0.5, "target_rate": 0.6}],
    "target": 0.5,
    "distillation_weight": 0.9,
    "teacher": "large-logits",
}


def test_stages_are_renamed_wherever_they_are() -> None:
    training = {"held_out_images": 1000, "stages": [STAGE, {"stage": "average", "of": [[STAGE], [STAGE]]}]}
    expected = {"validation_images": 1000, "stages": [RENAMED, {"stage": "soup", "of": [[RENAMED], [RENAMED]]}]}
    assert current_names(training) == expected
    assert current_names(expected) == expected


def test_the_keys_of_a_saved_state_are_renamed() -> None:
    state = {"sp open_bias": 0.0, "sp rungs": ({"target": 0.6},), "sp name": "dial", "stages": ["sp"], "seed": 0}
    expected = {
        "sp gate_bias_init": 0.0, "sp operating_points": ({"target_rate": 0.6},), "sp name": "multi_budget",
        "stages": ["sp"], "seed": 0,
    }  # fmt: skip
    assert current_names(state) == expected


def test_shipped_configs_are_written_under_current_names(tmp_path: Path) -> None:
    for file in sorted(SHIPPED.glob("*/*/model.safetensors")):
        config = read_config(file.parent)
        write_config(tmp_path, config)
        text = (tmp_path / "config.json").read_text()
        assert Config.model_validate_json(text) == config
        assert not any(f'"{old}"' in text for old in (*KEYS, *RECIPES, *TEACHERS))
