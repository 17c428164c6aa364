"""Full-size pipelines of random weights: their published sizes, and narrow copies of them that generate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.models.architecture import build_pipeline, models
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.weights import weight_files
from pytest_diffaccel.pipe_shapes import Architecture
from pytest_diffaccel.pipes import PipeSpec, known
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

# Parameters of the published weights, as their safetensors headers count them.
PARAMETERS = {
    "SD1.5": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "SD2.1": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "SDXL": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}
SIDES = {"SD1.5": 512, "SD2.1": 768, "SDXL": 1024}


def narrow(architecture: Architecture) -> Architecture:
    """The same blocks, a tenth as wide, for pictures of 128 pixels."""
    unet = dict(architecture.unet)
    unet["block_out_channels"] = tuple(32 for _ in unet["block_out_channels"])
    unet["attention_head_dim"] = 4
    unet["sample_size"] = 16
    unet["cross_attention_dim"] = 32 if architecture.text_2 is None else 64
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"projection_dim": 32, "hidden_act": "gelu"}
    if architecture.text_2 is not None:
        unet["projection_class_embeddings_input_dim"] = 6 * unet["addition_time_embed_dim"] + 32
        unet["transformer_layers_per_block"] = 1
    vae = {**architecture.vae, "block_out_channels": (32,) * 4, "layers_per_block": 1, "sample_size": 128}
    return replace(architecture, unet=unet, vae=vae, text=text, text_2=architecture.text_2 and text)


def architecture_of(pipe: str) -> Architecture:
    found = known()[pipe].architecture
    assert found
    return found


def narrow_pipe(pipe: str) -> PipeSpec:
    return replace(known()[pipe], architecture=narrow(architecture_of(pipe)))


@pytest.mark.parametrize("pipe", PIPES)
def test_sizes_are_those_of_the_published_weights(pipe: str) -> None:
    with torch.device("meta"):
        parts = models(architecture_of(pipe), eos_token=2)
    assert {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()} == PARAMETERS[pipe]
    factor = 2 ** (len(architecture_of(pipe).vae["block_out_channels"]) - 1)
    assert parts["unet"].config.sample_size * factor == SIDES[pipe]


@pytest.mark.parametrize("pipe", PIPES)
def test_a_narrow_copy_generates_with_every_method(pipe: str) -> None:
    tokenizers = Path(ModelSource.from_option("architecture").spec(pipe).location)
    pipeline = build_pipeline(narrow_pipe(pipe), tokenizers, torch.device("cpu"), torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    params = {
        "DeepCache": {"cache_interval": 2, "cache_branch_id": 0},
        "T-Gate": {"gate_step": 2, "sp_interval": 1, "fi_interval": 1, "warm_up": 0},
        "ToMe": {"ratio": 0.5, "max_downsample": 2},
    }
    with accelerate(pipeline, params, steps=4) as generate:
        (image,) = generate(["red apple on a blue background"], [0])
    assert image.size == (128, 128)
    assert generate.fired["denoiser_calls"] == 4


def test_the_same_seed_makes_the_same_weights_and_leaves_the_callers_state() -> None:
    tokenizers = Path(ModelSource.from_option("architecture").spec("SD1.5").location)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    def first_weights() -> torch.Tensor:
        pipeline = build_pipeline(narrow_pipe("SD1.5"), tokenizers, torch.device("cpu"), torch.float16)
        return pipeline.unet.conv_in.weight

    assert torch.equal(first_weights(), first_weights())
    assert first_weights().dtype == torch.float16
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.rand(1), expected)


def test_load_pipeline_builds_it() -> None:
    source = ModelSource.from_option("architecture")
    small = replace(source, specs=(replace(source.spec("SD2.1"), own=narrow_pipe("SD2.1")),))
    pipeline: Any = load_pipeline("SD2.1", scheduler="DPM-Solver++", models=small, device="cpu")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.tokenizer.model_max_length == 77
    assert (pipeline.scheduler.config.prediction_type, pipeline.device.type) == ("v_prediction", "cpu")


def test_the_source_says_what_it_cannot_tell() -> None:
    spec = ModelSource.from_option("architecture").spec("SD1.5")
    assert spec.description == "architecture only: SD1.5's shapes, random weights; speed, no quality"
    with pytest.raises(ValueError, match="no weight files"):
        weight_files(spec)


def test_a_search_by_quality_is_refused() -> None:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    with pytest.raises(OptionError, match="random weights: it tells speed and memory"):
        Settings.from_options(parser.parse_known_args(["--models", "architecture"]), ["ToMe"])
