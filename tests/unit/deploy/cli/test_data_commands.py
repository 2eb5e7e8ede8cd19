"""`ifkd data`: subcommands, and arguments that agree with the functions behind them."""

import argparse
from pathlib import Path
from typing import get_args

import pytest

from deploy.cli.data import COMMANDS
from deploy.cli.data import convert as convert_command
from deploy.cli.data import slice as slice_command
from deploy.cli.main import main
from ifkd.data.coco import read_coco
from ifkd.data.readers.convert import SourceFormat
from ifkd.data.slicing.tile_plan import TileRules


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_subcommand(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["data", command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: ifkd data {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_abbreviated_options_are_refused(command, capsys):
    assert main(["data", command, "--out", "x", "--ou=x", "coco", "b"]) == 2
    assert "--ou" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options(tmp_path):
    config, out = Path(__file__).parents[4] / "configs" / "demo_data.toml", tmp_path / "data"
    none = ("images.validation=0", "images.test=0", "scenes.count=0")
    assert main(["data", "synth", str(config), "images.train=1", "--out", str(out), "tile_px=64", *none]) == 0
    assert len(read_coco(out / "train.json").images) == 1
    assert main(["data", "synth", str(config), "--out", str(out), "--no-such-option", *none]) == 2


def test_slice_has_an_option_for_each_rule_with_its_default():
    parser = argparse.ArgumentParser()
    slice_command.configure(parser)
    values = vars(parser.parse_args(["a.json", "--out", "tiles"]))
    rules = TileRules().model_dump()
    assert rules.keys() <= values.keys()
    assert {name: value for name, value in rules.items() if values[name] != value} == {"overlap_px": 128}


def test_convert_accepts_every_format():
    assert get_args(SourceFormat) == convert_command.FORMATS
