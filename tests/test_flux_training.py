"""The training of FLUX.1's stand-in, as far as it can be checked without its pictures, a network or a GPU."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw
from safetensors import safe_open
from transformers import T5TokenizerFast

from training import judge, stages
from training.captions import all_captions, held_out_scenes
from training.clip_judging import Clip
from training.conditioning import tokenize
from training.flux import FluxTask, exact_conditions, levels, unguided
from training.flux_architecture import FLUX, FluxSpec, build_flux_scheduler, build_transformer, shift_of
from training.flux_judging import FluxJudged, made_of, named_right
from training.flux_parts import (
    MADE_FILE,
    FluxParts,
    embedded_vae,
    new_flux_parts,
    take_weights,
    to_flux_pipeline,
)
from training.flux_report import BEGIN, END, LEAST_STEPS, Made, write_section
from training.loop import Run, train
from training.objects import OBJECTS
from training.parts import load_pipeline
from training.schedule import Budget
from training.source import EMBEDDED
from training.stepper import Stepper
from training.t5_tokenizer import load_t5_tokenizer, write_t5_tokenizer
from training.tokenizer import MAX_LENGTH
from training.unet import LatentPool

#: Of 16 tokens a picture and one head; the depths are those that are shipped.
NARROW = FluxSpec(pixels=32, heads=1, axes=(4, 6, 6), t5_width=32, t5_layers=1)
MADE = Made(LEAST_STEPS, 256_000, 6.0, 256, 48_000, 0, "one Stand-in", "torch 2.11", 6_500_000)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_t5_tokenizer(folder, all_captions())
    return folder


def narrow_parts(folder: Path) -> FluxParts:
    vae = embedded_vae(EMBEDDED / "sd15" / "vae", NARROW.pixels)
    return new_flux_parts(NARROW, 0, folder / "tokenizers", vae)


def narrow_task(folder: Path) -> FluxTask:
    """The narrow stand-in on latents of noise."""
    random = torch.Generator().manual_seed(0)
    pool = LatentPool(
        torch.randn(8, 4, 8, 8, generator=random).half(),
        torch.arange(8),
        torch.arange(8),
        torch.zeros(8, 6, dtype=torch.int64),
    )
    return FluxTask(narrow_parts(folder), pool, batch=8, seed=0)


def run(folder: Path, steps: int = 4) -> Run:
    return Run("test", 1e-3, 8, Budget(steps=steps), torch.device("cpu"), folder, save_every_s=0.0)


def test_the_stand_in_has_its_namesakes_blocks_and_keeps_its_limit(tmp_path: Path) -> None:
    parts = new_flux_parts(FLUX, 0, tmp_path, embedded_vae(EMBEDDED / "sd15" / "vae", FLUX.pixels))
    transformer = parts.transformer
    assert len(transformer.transformer_blocks) >= 4
    assert len(transformer.single_transformer_blocks) >= 8
    assert transformer.config.guidance_embeds
    assert sum(transformer.config.axes_dims_rope) == transformer.config.attention_head_dim
    models = (transformer, parts.text_encoder, parts.text_encoder_2, parts.vae)
    halves = 2 * sum(weight.numel() for model in models for weight in model.parameters())
    assert halves <= 15_800_000, "with the files' headers and the tokenizers they would not stay below 16 MB"


def test_a_new_transformer_predicts_nothing_and_its_blocks_are_the_identity() -> None:
    transformer = build_transformer(NARROW)
    block = transformer.single_transformer_blocks[0]
    texts, picture, temb = torch.randn(1, 3, 16), torch.randn(1, 5, 16), torch.randn(1, 16)
    turned = transformer.pos_embed(torch.zeros(8, 3))
    given = block(hidden_states=picture, encoder_hidden_states=texts, temb=temb, image_rotary_emb=turned)
    torch.testing.assert_close(given, (texts, picture))
    assert not transformer.proj_out.weight.any()


def test_t5_captions_fit_and_come_back(vocabulary: Path) -> None:
    tokenizer = T5TokenizerFast.from_pretrained(vocabulary, local_files_only=True)
    texts = all_captions()
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) <= MAX_LENGTH == tokenizer.model_max_length
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("red apple").input_ids[-1] == tokenizer.eos_token_id


def test_a_t5_vocabulary_is_made_alike_every_time(vocabulary: Path, tmp_path: Path) -> None:
    write_t5_tokenizer(tmp_path, all_captions()[::-1])
    assert (tmp_path / "tokenizer.json").read_bytes() == (vocabulary / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", ["", "Ünïcødé 日本語", "🍎\x00\n", "a" * 500, "</s> <pad> x"])
def test_t5_can_read_any_text(vocabulary: Path, text: str) -> None:
    tokenizer = load_t5_tokenizer(vocabulary)
    ids = tokenize(tokenizer, [text])
    assert ids.shape == (1, MAX_LENGTH)
    assert int(ids.max()) < len(tokenizer)


def test_levels_are_shifted_as_the_scheduler_shifts_those_that_are_sampled() -> None:
    sampled = build_flux_scheduler()
    places = np.linspace(1.0, 1 / 28, 28)
    sampled.set_timesteps(28, sigmas=places.tolist(), mu=shift_of(FLUX))
    asked = levels(torch.tensor(places, dtype=torch.float32), torch.ones(28, dtype=torch.bool), FLUX)
    torch.testing.assert_close(asked, sampled.sigmas[:-1])
    drawn = levels((torch.arange(1000) + 0.5) / 1000, torch.zeros(1000, dtype=torch.bool), FLUX).logit()
    assert float(drawn.mean()) == pytest.approx(shift_of(FLUX), abs=1e-3)
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)


def test_what_guidance_adds_is_taken_off_again_before_the_loss() -> None:
    random = torch.Generator().manual_seed(0)
    captioned, untold = torch.randn(2, 3, 5, 4, generator=random)
    guidance = torch.tensor([1.0, 3.5, 6.0])
    guided = untold + guidance[:, None, None] * (captioned - untold)
    torch.testing.assert_close(unguided(guided, untold, guidance, torch.zeros(3, dtype=torch.bool)), captioned)
    torch.testing.assert_close(unguided(guided, untold, guidance, torch.ones(3, dtype=torch.bool)), guided)


def test_levels_and_scales_reach_the_embedding_unrounded() -> None:
    transformer = build_transformer(NARROW).bfloat16()
    seen: list[tuple[torch.Tensor, ...]] = []
    transformer.time_text_embed.register_forward_hook(lambda _, given, __: seen.append(given))
    sigmas, guidance = torch.tensor([0.7031]), torch.tensor([3.3])
    inputs = {
        "hidden_states": torch.zeros(1, 4, 16, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.zeros(1, 2, 32, dtype=torch.bfloat16),
        "pooled_projections": torch.zeros(1, 96, dtype=torch.bfloat16),
        "timestep": sigmas,
        "guidance": guidance,
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(2, 3),
    }
    with torch.no_grad():
        with exact_conditions(transformer, sigmas, guidance):
            transformer(**inputs)
        transformer(**inputs)
    exact, rounded = seen
    assert (float(exact[0]), float(exact[1])) == (pytest.approx(703.1), pytest.approx(3300.0))
    assert float(rounded[0]) != pytest.approx(703.1, abs=0.5), "nothing is rounded any more: exact_conditions may go"


def test_a_step_draws_one_caption_for_both_encoders(tmp_path: Path) -> None:
    latents, noise, clip_ids, t5_ids, dropped, sigmas, guidance = narrow_task(tmp_path).draw(0)
    assert latents.shape == noise.shape == (8, NARROW.tokens, 16)
    parts = narrow_parts(tmp_path)
    captions = parts.tokenizer_2.batch_decode(t5_ids, skip_special_tokens=True)
    assert captions == parts.tokenizer.batch_decode(clip_ids, skip_special_tokens=True)
    assert set(captions) <= set(all_captions())
    assert dropped.dtype == torch.bool
    assert bool(((sigmas >= 0) & (sigmas <= 1)).all())
    assert bool(((guidance >= 1) & (guidance <= 6)).all())


def test_a_few_steps_lower_the_loss_of_their_pictures(tmp_path: Path) -> None:
    task = narrow_task(tmp_path)
    inputs = task.draw(0)
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    stepper = Stepper(task, torch.device("cpu"))
    stepper.set_rate(3e-3)
    losses = [float(stepper(inputs)) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    still = [name for name, value in task.model.named_parameters() if torch.equal(value, before[name])]
    # What a key's bias adds is the same for all that it is compared with.
    assert still == []


def test_a_training_goes_on_exactly_and_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    whole, stopped, resumed = (narrow_task(tmp_path) for _ in range(3))
    train(whole, run(tmp_path / "whole"))
    drawn = stopped.draw

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(step)

    stopped.draw = draw  # type: ignore[method-assign]
    never_saved = replace(run(tmp_path / "stopped"), save_every_s=1e9)
    with pytest.raises(SystemExit) as end:
        train(stopped, never_saved)
    assert end.value.code == 128 + signal.SIGINT
    assert json.loads((tmp_path / "stopped" / "checkpoint.json").read_text(encoding="utf-8"))["step"] == 2
    assert train(resumed, never_saved).step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triangles in place of the npm package's pictures."""
    folder = tmp_path_factory.mktemp("sprites")
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).polygon([(8, 50), (15, 10), (55, 45)], fill=(200, 30, 30, 255))
    for thing in OBJECTS:
        picture.save(folder / f"{thing.code}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def folder(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage leaves of the narrow stand-in after two steps."""
    place = tmp_path_factory.mktemp("stage")
    cpu = torch.device("cpu")
    settings = stages.Settings(cpu, place / "work", place, 0, 16, 0, 1, 4, 1e-3, save_every_s=60.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "fetch_sprites", lambda: sprites)
        stages.make_flux(settings, Budget(steps=2), None, NARROW)
    return place / NARROW.name


def test_the_stage_leaves_a_folder_that_flux_pipeline_loads_and_samples(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == pipeline.text_encoder_2.dtype == torch.float32
    assert (pipeline.vae.config.sample_size, pipeline.vae.config.shift_factor) == (32, 0.0)
    assert pipeline.tokenizer.model_max_length == pipeline.tokenizer_2.model_max_length == MAX_LENGTH
    judged = FluxJudged.load(folder, "cpu")
    (picture,) = judged.generate(["red apple on a blue background"], [0])
    assert picture.size == (32, 32)
    assert np.asarray(picture).std() > 0
    with pytest.raises(ValueError, match="judged without acceleration"):
        judged.generate(["red apple on a blue background"], [0], {"ToMe": {"ratio": 0.5}})


def test_guidance_is_judged_in_one_call_and_in_two(folder: Path) -> None:
    judged = replace(FluxJudged.load(folder, "cpu"), steps=2)
    with torch.no_grad():  # two steps have taught it next to nothing
        for weight in judged.pipeline.transformer.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    ways = (judged, replace(judged, guidance=1.0), replace(judged, two_calls=True))
    pictures = [np.asarray(way.generate(["red apple on a blue background"], [0])[0]) for way in ways]
    assert len({picture.tobytes() for picture in pictures}) == 3
    once = replace(judged, guidance=1.0, two_calls=True).generate(["red apple on a blue background"], [0])
    np.testing.assert_array_equal(np.asarray(once[0]), pictures[1])


def test_the_folder_has_half_weights_and_says_what_it_is(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".txt", ".md"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "This is not FLUX.1" in card
    assert "| this run | 2 steps, 8 samples" in card
    assert json.loads((folder / MADE_FILE).read_text(encoding="utf-8"))["steps"] == 2


def test_finished_weights_can_be_trained_further(folder: Path, tmp_path: Path) -> None:
    task = narrow_task(tmp_path)
    new = task.model.state_dict()
    parts = narrow_parts(tmp_path)
    take_weights(parts, folder)
    trained = load_pipeline(folder).transformer.state_dict()
    for name, value in parts.transformer.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert not all(torch.equal(value, new[f"transformer.{name}"]) for name, value in trained.items())
    with pytest.raises(FileNotFoundError, match="no pipeline in"):
        take_weights(parts, tmp_path / "nowhere")


def test_training_and_sampling_ask_the_transformer_the_same(tmp_path: Path) -> None:
    """What the pipeline hands over in its second step, and what training hands over of the same."""
    parts = narrow_parts(tmp_path)
    task, pipeline = narrow_task(tmp_path), to_flux_pipeline(parts)
    pipeline.set_progress_bar_config(disable=True)
    asked: list[dict[str, torch.Tensor]] = []
    parts.transformer.register_forward_pre_hook(lambda _, __, given: asked.append(dict(given)), with_kwargs=True)
    pipeline("lemon on a red background", height=32, width=32, num_inference_steps=2, max_sequence_length=MAX_LENGTH)
    ours: list[dict[str, torch.Tensor]] = []
    task.model.transformer.register_forward_pre_hook(lambda _, __, given: ours.append(dict(given)), with_kwargs=True)
    task(*task.draw(0))
    for name in ("img_ids", "txt_ids"):
        assert torch.equal(asked[1][name], ours[0][name]), name
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        assert asked[1][name].shape[1:] == ours[0][name].shape[1:], name
    assert float(asked[1]["timestep"]) == pytest.approx(float(pipeline.scheduler.sigmas[1]))
    assert float(asked[1]["guidance"]) == 3.5
    clip, t5 = (tokenize(each, ["lemon on a red background"]) for each in (parts.tokenizer, parts.tokenizer_2))
    pooled, states = task.model.told(clip, t5)
    torch.testing.assert_close(pooled, asked[1]["pooled_projections"])
    torch.testing.assert_close(states, asked[1]["encoder_hidden_states"])


def test_clip_names_the_pictures_that_sd15_drew(folder: Path) -> None:
    with Image.open(Path(stages.__file__).parent / "figures" / "sd15_held_out.png") as grid:
        side = grid.height // 4
        boxes = [(side * (n % 16), side * (n // 16)) for n in range(16)]
        pictures = [grid.convert("RGB").crop((left, top, left + side, top + side)) for left, top in boxes]
    clip, scenes = Clip.load(EMBEDDED / "clip_standin"), held_out_scenes()
    told = named_right(clip, pictures, scenes[:16])
    assert told["right object"] >= 0.9
    assert told["right background"] >= 0.9
    astray = named_right(clip, pictures, scenes[1:17])
    assert astray["right object"] == 0.0
    assert astray["score"] < told["score"] - 20


def test_figures_are_written_between_the_marks_and_again(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n\n{BEGIN}\n\nnot yet\n\n{END}\n\nafter\n", encoding="utf-8")
    write_section(page, MADE, {"passed": 64, "LPIPS": 0.25})
    once = page.read_text(encoding="utf-8")
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "not yet" not in once
    assert "| passed | 64 |" in once
    assert "| LPIPS | 0.250 |" in once
    assert "| pictures/s | 711 |" in once
    write_section(page, MADE, {"passed": 64, "LPIPS": 0.25})
    assert page.read_text(encoding="utf-8") == once
    page.write_text("before\n\nafter\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_section(page, MADE, {})
    assert page.read_text(encoding="utf-8") == "before\n\nafter\n"


def test_untrained_weights_are_not_written_of(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    monkeypatch.setattr(judge, "README", page)
    # Else later tests of this process would compute on as many, and draw other last digits.
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    with pytest.raises(ValueError, match=f"2 steps of training are too few to write of: {LEAST_STEPS} at least"):
        judge.main(["--pipe", "flux1", "--flux", str(folder), "--readme"])
    with pytest.raises(FileNotFoundError, match=r"train FLUX\.1's stand-in first"):
        judge.main(["--pipe", "flux1", "--flux", str(tmp_path)])
    assert not page.exists()
    with pytest.raises(SystemExit):
        judge.main(["--pipe", "flux1", "--part", "speed"])


def test_the_pages_marks_are_there() -> None:
    text = judge.README.read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)


def test_the_shipped_stand_in_is_trained_judged_and_keeps_its_limit() -> None:
    shipped = EMBEDDED / FLUX.name
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= 16_000_000
    made_of(shipped).check()
    assert "Not trained yet" not in judge.README.read_text(encoding="utf-8")
    transformer = load_pipeline(shipped).transformer
    assert all(bool(weight.isfinite().all()) for weight in transformer.parameters())
    assert len(transformer.single_transformer_blocks) == FLUX.single_blocks
