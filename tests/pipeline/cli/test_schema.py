"""The schema of ``patchworks.yaml`` says of a file what the settings say of it."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from patchworks_pipeline.cli.main import app
from patchworks_pipeline.cli.schema import settings_schema
from patchworks_pipeline.resources.settings_file import SECTIONS


def problems(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(settings_schema())
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def test_the_command_prints_the_schema_of_every_section():
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert set(json.loads(result.output)["properties"]) == set(SECTIONS)


@pytest.mark.parametrize(("section", "example"), SECTIONS.items())
def test_the_example_of_every_section_fits(section, example):
    assert problems(f"{section}: {{{example}}}") == []


@pytest.mark.parametrize("channel", ["1", "DAPI", "'2'"])
def test_a_channel_is_a_position_or_a_name(channel):
    assert problems(f"segmentations: {{nuclei: {{channel: {channel}}}}}") == []


def test_a_size_of_tiles_is_a_number_or_a_list():
    assert problems("segmentation: {tile_shape: 64, overlap: [4, 8]}") == []
    assert problems("segmentation: {tile_shape: big}")


def test_limits_of_a_tile_are_what_the_budget_takes():
    for text in ("tile_timeout: 0", "tile_timeout: 0.1", "worker_memory: 8000000000"):
        assert problems(f"budget: {{{text}}}") == []


@pytest.mark.parametrize(
    "text",
    [
        "budgets: {}",
        "budget: {workers: many}",
        "budget: {tile_timeout: 0.01}",
        "budget: {memory_fraction: 80}",
        "segmentations: {nuclei: {functoin: threshold}}",
        "store: {home: elsewhere}",
    ],
)
def test_a_mistake_does_not_fit(text):
    assert problems(text)
