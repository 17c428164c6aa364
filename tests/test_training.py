"""The training of the embedded pipelines, as far as it can be checked without its pictures, a network or a GPU."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from transformers import CLIPTokenizer

from training import generated, stages
from training.architectures import PIPES, build_vae
from training.captions import Scene, all_captions, caption, held_out_scenes, sample_prompts, training_scenes
from training.clip import ClipTask, ScenePool, blurred, degraded
from training.clip_judging import Clip, blur, noise, plain
from training.conditioning import tokenize
from training.loop import Run, held_back, train
from training.objects import OBJECTS
from training.parts import load_pipeline, new_clip, new_parts
from training.render import Layout, draw, random_layout, render, render_range
from training.schedule import Budget, learning_rate
from training.stepper import Task
from training.tokenizer import END, MAX_LENGTH, load_tokenizer, write_tokenizer
from training.unet import LatentPool, UnetTask
from training.vae import encode, to_signed, whiten

EMBEDDED = Path(__file__).parents[1] / "pytest_diffaccel" / "models" / "embedded"
CLIP = EMBEDDED / "clip_standin"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lopsided drawings in place of the npm package's pictures."""
    folder = tmp_path_factory.mktemp("sprites")
    picture = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(picture).polygon([(30, 200), (60, 40), (220, 180)], fill=(200, 30, 30, 255))
    for thing in OBJECTS:
        picture.save(folder / f"{thing.code}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, all_captions())
    return folder


def test_rendering_depends_on_the_seed_and_the_number_alone(sprites: Path) -> None:
    scenes = training_scenes()
    whole = render(6, sprites, scenes, 64, seed=3, workers=1, framed=True)
    later = render_range(range(4, 6), sprites, scenes, 64, seed=3, framed=True)
    np.testing.assert_array_equal(whole.pictures[4:], later.pictures)
    np.testing.assert_array_equal(whole.time_ids[4:], later.time_ids)
    other = render(6, sprites, scenes, 64, seed=4, workers=1, framed=True)
    assert not np.array_equal(whole.pictures, other.pictures)


def test_what_the_caption_leaves_open_varies() -> None:
    layouts = [random_layout(np.random.default_rng([0, number])) for number in range(50)]
    for field in ("size", "across", "down", "hue_shift", "saturation_factor", "value_factor", "gradient"):
        assert len({getattr(layout, field) for layout in layouts}) == len(layouts)
    assert {layout.mirrored for layout in layouts} == {False, True}


def test_the_mirror_image_is_mirrored(sprites: Path) -> None:
    plain, mirrored = (draw(sprites, Scene(0, 0), Layout(mirrored=flag), 64) for flag in (False, True))
    assert not np.array_equal(plain, mirrored)
    np.testing.assert_array_equal(plain, mirrored[:, ::-1])


def test_held_out_scenes_are_never_trained() -> None:
    held_out = held_out_scenes()
    assert {scene.thing for scene in held_out} == set(range(len(OBJECTS)))
    assert not set(held_out) & set(training_scenes())
    prompts = sample_prompts()
    assert len(set(prompts)) == len(prompts) == len(OBJECTS) - 2
    assert not any("police car" in prompt or "cat face" in prompt for prompt in prompts)
    assert set(prompts) <= {caption(scene) for scene in training_scenes()}


def test_captions_read_well() -> None:
    assert caption(Scene(0, 4)) == "red apple on a blue background"
    assert caption(Scene(0, 1), wording=1) == "a red apple on an orange background"
    grapes = next(number for number, thing in enumerate(OBJECTS) if thing.name == "grapes")
    assert caption(Scene(grapes, 4), wording=3) == "picture of grapes on a blue background"


def test_captions_fit_and_come_back(vocabulary: Path) -> None:
    tokenizer = load_tokenizer(vocabulary)
    texts = all_captions()
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) <= MAX_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_vocabulary_is_learnt_alike_every_time(vocabulary: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, all_captions()[::-1])
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (vocabulary / name).read_bytes(), name


@pytest.mark.parametrize(
    "text", ["", " ", "Ünïcødé", "日本語の文章", "🍎🏳️‍🌈", "\x00\x07\n\t", "١٢٣ ½ ﷽", "a" * 500, "<|endoftext|> x"]
)
def test_any_text_can_be_tokenised(vocabulary: Path, text: str) -> None:
    tokenizer = load_tokenizer(vocabulary)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) is not None
    ids = tokenize(tokenizer, [text])
    assert ids.shape == (1, MAX_LENGTH)
    assert int(ids.max()) < len(tokenizer)
    body = [token for token in tokenizer.tokenize(text.replace(END, "")) if token == END]
    assert body == [], "a byte had no token and became the unknown one"


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    assert learning_rate(1.0, step=0, fraction=0.0) < 0.01
    assert learning_rate(1.0, step=1000, fraction=0.0) == 1.0
    assert learning_rate(1.0, step=9999, fraction=1.0) == pytest.approx(0.01)
    assert Budget(steps=10, minutes=1).fraction(1, elapsed_s=30) == 0.5
    with pytest.raises(ValueError, match="end"):
        Budget()


def test_the_time_left_is_that_of_the_end_that_comes_first() -> None:
    assert Budget(steps=100).left_s(40, elapsed_s=9.0, step_s=0.5) == 30.0
    assert Budget(minutes=2).left_s(40, elapsed_s=90.0, step_s=0.5) == 30.0
    assert Budget(steps=100, minutes=2).left_s(90, elapsed_s=60.0, step_s=0.5) == 5.0
    assert Budget(minutes=1).left_s(40, elapsed_s=61.0, step_s=0.5) == 0.0


class Killed(Exception):
    """Stands for a kill in the middle of a training."""


def kill_at(step: int, task: Task) -> None:
    """Let a task's training die at a step."""
    drawn = task.draw

    def draw(number: int) -> tuple[torch.Tensor, ...]:
        if number == step:
            raise Killed
        return drawn(number)

    task.draw = draw  # type: ignore[method-assign]


def tiny_task(folder: Path) -> UnetTask:
    """The XL pipe, whose first text encoder has a layer that never gets a gradient, with a narrow UNet."""
    narrow = {"block_out_channels": (16, 32, 32), "attention_head_dim": 1}
    spec = replace(PIPES["sdxl"], unet={**PIPES["sdxl"].unet, **narrow})
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 8, 8, generator=random).half()
    pool = LatentPool(latents, torch.arange(8), torch.arange(8), torch.full((8, 6), spec.pixels))
    return UnetTask(new_parts(spec, seed=0, folder=folder / "tokenizer"), pool, batch=2, seed=0)


def tiny_clip_task(folder: Path) -> ClipTask:
    """The CLIP on one picture of noise for each trained scene, and a second one, said to be generated, for some."""
    scenes = training_scenes()
    shown = scenes + scenes[::50]
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (len(shown), 64, 64, 3), generator=random, dtype=torch.uint8)
    things = torch.tensor([scene.thing for scene in shown])
    colours = torch.tensor([scene.colour for scene in shown])
    pool = ScenePool.of(pictures, things, colours, torch.arange(len(shown)) >= len(scenes))
    model, tokenizer = new_clip(0, folder / "tokenizer")
    return ClipTask(model, tokenizer, pool, batch=4, seed=0)


@pytest.mark.parametrize(("make", "batch"), [(tiny_task, 2), (tiny_clip_task, 4)], ids=["unet", "clip"])
def test_a_killed_training_goes_on_exactly(make: Callable[[Path], Task], batch: int, tmp_path: Path) -> None:
    def run(name: str) -> Run:
        return Run("test", 1e-3, batch, Budget(steps=4), torch.device("cpu"), tmp_path / name, save_every_s=0.0)

    whole = make(tmp_path)
    train(whole, run("whole"))
    killed = make(tmp_path)
    kill_at(2, killed)
    with pytest.raises(Killed):
        train(killed, run("killed"))
    resumed = make(tmp_path)
    counters = train(resumed, run("killed"))
    assert (counters.step, counters.samples) == (4, 4 * batch)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    untrained = make(tmp_path).model.state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in whole.model.state_dict().items())


def test_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_back() as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert came == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@torch.no_grad()
def test_whitening_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    vae = build_vae(64).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    signed = to_signed(torch.from_numpy(pictures))
    before = vae.decode(vae.encode(signed).latent_dist.mean).sample
    whiten(vae, encode(vae, pictures))
    after = vae.encode(signed).latent_dist.mean
    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(after).sample, before, atol=1e-3, rtol=1e-3)


def test_embedded_files_keep_their_limits() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    of_clip = [path for path in files if path.is_relative_to(CLIP)]
    assert sum(path.stat().st_size for path in of_clip) <= 6 * MEGABYTE
    assert max(path.stat().st_size for path in files) <= 16 * MEGABYTE
    assert sum(path.stat().st_size for path in files if path not in of_clip) <= 64 * MEGABYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ".py"}


@pytest.mark.parametrize("name", [*PIPES, CLIP.name])
def test_embedded_weights_are_half_precision_and_finite(name: str) -> None:
    for file in (EMBEDDED / name).rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = weights.get_tensor(key)
                assert tensor.dtype == torch.float16
                assert bool(tensor.isfinite().all()), key


@pytest.mark.parametrize("name", PIPES)
def test_embedded_folders_load_as_what_they_were_trained_as(name: str) -> None:
    spec = PIPES[name]
    pipeline = load_pipeline(EMBEDDED / name)
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == spec.pixels
    assert pipeline.scheduler.config.prediction_type == spec.prediction
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    folder = EMBEDDED / name
    assert (folder / "prompts.txt").read_text(encoding="utf-8").splitlines() == sample_prompts()
    assert "not Stable Diffusion" in (folder / "README.md").read_text(encoding="utf-8")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == ("StableDiffusionXLPipeline" if spec.is_xl else "StableDiffusionPipeline")


def test_a_clip_batch_holds_one_picture_of_a_scene_and_spoilt_ones_behind(tmp_path: Path) -> None:
    task = tiny_clip_task(tmp_path)
    task.batch = 64
    pictures, ids, numbers = task.draw(0)
    shown = [training_scenes()[number] for number in numbers.tolist()]
    assert len(set(shown)) == 64, "two right answers would be each other's wrong one"
    assert len({scene.thing for scene in shown}) == 16
    assert pictures.shape == (64 + 16, 3, 64, 64)
    assert pictures[-1].std(dim=(1, 2)).max() < 1e-6, "the last spoilt pictures are of one colour"
    texts = load_tokenizer(tmp_path / "tokenizer").batch_decode(ids, skip_special_tokens=True)
    assert len(texts) == len(training_scenes())
    assert not set(texts) & {caption(scene, wording) for scene in held_out_scenes() for wording in range(4)}
    for scene, text in zip(training_scenes(), texts, strict=True):
        assert text in {caption(scene, wording) for wording in range(4)}


def test_a_pool_without_pictures_of_some_scenes_is_refused() -> None:
    pictures, label = torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 pictures leave out some trained scenes: render 448 or more"):
        ScenePool.of(pictures, label, label + 1, label > 0)


def test_generated_pictures_are_picked_where_there_are_some() -> None:
    scenes = training_scenes()
    shown = [*scenes, scenes[3]]
    things, colours = (torch.tensor([getattr(scene, name) for scene in shown]) for name in ("thing", "colour"))
    pictures = torch.arange(len(shown))[:, None, None, None].expand(-1, 2, 2, 3)  # each is its own number
    pool = ScenePool.of(pictures, things, colours, torch.arange(len(shown)) == len(scenes))
    picked = pool.pick(torch.tensor([3, 3, 4]), torch.tensor([[0.0, 0.9, 0.0], [0.5, 0.5, 0.5]]))
    assert picked[:, 0, 0, 0].tolist() == [len(scenes), 3, 4]


def test_spoilt_pictures_are_blurred_noisy_or_of_one_colour() -> None:
    pictures = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spoilt = degraded(pictures, torch.Generator().manual_seed(0))
    assert spoilt.shape == pictures.shape
    assert bool((spoilt.abs() <= 1).all())
    deviations = spoilt.std(dim=(2, 3)).mean(dim=1)
    assert deviations[:3].max() < deviations[3:6].min(), "blur flattens, and noise does not"
    assert deviations[6:].max() < 1e-6
    assert torch.equal(spoilt[6, :, 5, 5], pictures[6, :, 0, 0])
    even = torch.full((1, 3, 64, 64), 0.25)
    torch.testing.assert_close(blurred(even, torch.tensor(2.0)), even)


def test_generated_pictures_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "CHUNK", 1)
    monkeypatch.setattr(generated, "STEPS", (2,))
    (drawn,) = generated.chunks(1, EMBEDDED, tmp_path, 48, torch.device("cpu"))
    assert drawn["pictures"].shape == (1, 48, 48, 3)
    assert [Scene(int(drawn["things"][0]), int(drawn["colours"][0]))] == generated.chunk_scenes(0)
    (again,) = generated.chunks(1, tmp_path / "gone", tmp_path, 48, torch.device("cpu"))
    assert torch.equal(again["pictures"], drawn["pictures"])


def test_scenes_of_generated_pictures_are_trained_ones_and_each_comes() -> None:
    files = range(-(-len(training_scenes()) // generated.CHUNK))
    assert {scene for number in files for scene in generated.chunk_scenes(number)} == set(training_scenes())


def test_the_clip_stage_leaves_a_folder_that_transformers_loads(
    sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "fetch_sprites", lambda: sprites)
    settings = stages.Settings(
        torch.device("cpu"), tmp_path / "work", tmp_path, 0, len(training_scenes()), 0, 1, 4, 1e-3, save_every_s=60.0
    )
    stages.make_clip(settings, Budget(steps=1))
    clip = Clip.load(tmp_path / stages.CLIP_NAME)
    assert clip.model.dtype == torch.float32
    shipped = Clip.load(CLIP).model.state_dict()
    assert {key: value.shape for key, value in clip.model.state_dict().items()} == {
        key: value.shape for key, value in shipped.items()
    }
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / stages.CLIP_NAME / name).read_bytes() == (CLIP / name).read_bytes(), name


@pytest.fixture(scope="module")
def held_out_pictures() -> list[Image.Image]:
    """What ``sd15`` drew of the held-out prompts, in the order of the objects: the judgement's grid."""
    with Image.open(EMBEDDED.parents[2] / "training" / "figures" / "sd15_held_out.png") as grid:
        side = grid.height // 4
        boxes = [(side * (n % 16), side * (n // 16)) for n in range(len(OBJECTS))]
        return [grid.convert("RGB").crop((left, top, left + side, top + side)) for left, top in boxes]


def own_scores(pictures: list[Image.Image]) -> np.ndarray:
    return Clip.load(CLIP).scores(pictures, [caption(scene) for scene in held_out_scenes()]).diagonal()


def test_the_shipped_clip_finds_the_right_caption(held_out_pictures: list[Image.Image]) -> None:
    scores = Clip.load(CLIP).scores(held_out_pictures, [caption(scene) for scene in held_out_scenes()])
    assert scores.max() <= 100
    assert (scores.argmax(axis=1) == np.arange(len(OBJECTS))).mean() >= 0.9


def test_what_spoils_a_picture_lowers_the_shipped_clips_score(held_out_pictures: list[Image.Image]) -> None:
    good = own_scores(held_out_pictures)
    for spoil in (partial(blur, 0.06), partial(noise, 40), partial(plain, (0, 0, 0)), partial(plain, (90, 120, 200))):
        assert own_scores([spoil(picture) for picture in held_out_pictures]).mean() < good.mean(), spoil
    exchanged = own_scores(held_out_pictures[1:] + held_out_pictures[:1])
    assert exchanged.mean() < good.mean()


def test_the_shipped_clip_knows_the_captions_and_says_what_it_is() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
    assert max(len(ids) for ids in tokenizer(all_captions()).input_ids) <= tokenizer.model_max_length == MAX_LENGTH
    assert "not OpenAI's CLIP" in (CLIP / "README.md").read_text(encoding="utf-8")
