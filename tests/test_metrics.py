"""Metrics of pictures: known values, what is asked of them, what becomes of faulty ones, and what is registered."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from small_clip import make_clip
from transformers import CLIPModel, CLIPProcessor

from pytest_diffaccel.measure.metrics.base import Metric, MetricFault, scores_of
from pytest_diffaccel.measure.metrics.clip_score import ClipScore
from pytest_diffaccel.measure.metrics.lpips import Lpips, lpips_distances, lpips_model
from pytest_diffaccel.measure.metrics.psnr import Psnr
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.metrics.ssim import Ssim
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.models.clip import ClipSource

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["a red apple on a blue background", "a green tree", "a yellow star on a white background"]


def noise(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


PICTURES = [noise(seed) for seed in range(3)]


# --- built-in ones that compare ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "best"), [(Lpips(), 0.0), (Psnr(), 100.0), (Ssim(), 1.0)])
def test_identical_pictures_have_the_best_value(metric: Metric, best: float) -> None:
    assert scores_of(metric, PICTURES, PICTURES) == pytest.approx([best] * 3)
    (other,) = scores_of(metric, PICTURES[:1], PICTURES[1:2])
    assert other < best if metric.higher_is_better else other > best


@given(st.integers(1, 255))
def test_psnr_of_an_offset_is_that_of_the_formula(offset: int) -> None:
    grey, lighter = (Image.new("RGB", (8, 8), (level,) * 3) for level in (0, offset))
    assert scores_of(Psnr(), [lighter], [grey]) == pytest.approx([20 * math.log10(255 / offset)], abs=1e-9)


def test_a_search_records_what_the_metrics_give() -> None:
    images = PICTURES[1:] + PICTURES[:1]
    quality = References(PICTURES).score(images)
    lpips, psnr, ssim = (scores_of(metric, images, PICTURES) for metric in (Lpips(), Psnr(), Ssim()))
    assert quality.lpips_per_sample == lpips
    assert (quality.psnr_db, quality.ssim) == (float(np.mean(psnr)), float(np.mean(ssim)))


def test_pictures_that_are_too_small_are_told_by_the_metric() -> None:
    tiny = [noise(0, 6)]
    with pytest.raises(MetricFault, match="ssim: pictures of 6 x 6 pixels are smaller than its window of 7"):
        scores_of(Ssim(), tiny, tiny)
    with pytest.raises(MetricFault, match=r"lpips: .* LPIPS needs at least 17 per side"):
        scores_of(Lpips(), tiny, tiny)


# --- LPIPS of other networks -------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path) -> Iterator[Path]:
    """Where torch's hub keeps files, with nothing in it."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_a_network_without_weights_says_what_to_give(hub_cache: Path) -> None:
    file = hub_cache / "vgg16-397923af.safetensors"
    for act in (lambda: scores_of(Lpips("vgg"), PICTURES, PICTURES), lambda: Lpips("vgg").identity):
        with pytest.raises(MetricFault, match=f"lpips_vgg: there is no {file}; .* python -c .*vgg16-397923af.pth"):
            act()


def test_alex_takes_torchvisions_weights_from_the_hub_cache(hub_cache: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = alexnet(weights=None)
    metric, file = Lpips("alex"), hub_cache / "alexnet-owt-7be5be79.safetensors"
    file.write_bytes(b"cut off")
    with pytest.raises(MetricFault, match=r"lpips_alex: .* does not hold torchvision's weights of alexnet"):
        metric.prepare("cpu")
    save_file(backbone.features.state_dict(prefix="features."), file)
    larger = [picture.resize((64, 64)) for picture in PICTURES]
    values = scores_of(metric, larger, larger[::-1])
    assert values[1] == 0 < values[0]
    network = lpips_model("cpu", "alex").net
    assert torch.equal(network.slice2.get_submodule("3").weight, backbone.features[3].weight)
    assert re.fullmatch(r"lpips_alex \(torchvision's alexnet, .*, [0-9a-f]{12}\)", metric.identity)
    with pytest.raises(MetricFault, match="LPIPS needs at least 31 per side"):
        scores_of(metric, [noise(0, 30)], [noise(1, 30)])


def test_the_network_that_decides_is_loaded_once() -> None:
    assert lpips_model("cpu") is lpips_model("cpu", "squeeze")
    assert lpips_distances(PICTURES, PICTURES) == [0.0, 0.0, 0.0]


# --- CLIP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of :func:`small_clip.make_clip`."""
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip_score(clip_folder: Path) -> ClipScore:
    return ClipScore(ClipSource.from_option(str(clip_folder)))


def test_clip_score_is_100_times_the_cosine(clip_score: ClipScore, clip_folder: Path) -> None:
    """What transformers' own forward gives, of every picture with every prompt."""
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    pictures = [noise(seed) for seed in range(40)]
    inputs = processor(text=PROMPTS, images=pictures, padding=True, return_tensors="pt")
    with torch.inference_mode():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
    for place, prompt in enumerate(PROMPTS):
        expected = (100 * cosines[:, place]).tolist()
        assert scores_of(clip_score, pictures, prompts=[prompt] * 40) == pytest.approx(expected, abs=1e-4)


def test_clip_score_is_at_least_0(clip_folder: Path, tmp_path: Path) -> None:
    """Of pictures that were as near to their prompts as they are now far from them."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(clip_folder, tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"visual_projection.weight": -tensors["visual_projection.weight"]}, file, {"format": "pt"})
    there, opposite = (ClipScore(ClipSource.from_option(str(folder))) for folder in (clip_folder, tmp_path / "clip"))
    assert min(scores_of(there, PICTURES, prompts=PROMPTS)) > 0
    assert scores_of(opposite, PICTURES, prompts=PROMPTS) == (0, 0, 0)


def test_clip_score_needs_a_prompt_for_each_picture(clip_score: ClipScore) -> None:
    with pytest.raises(ValueError, match="clip_score: 3 images cannot be scored with 2 prompts"):
        scores_of(clip_score, PICTURES, prompts=PROMPTS[:2])


def test_long_prompts_are_cut_as_clip_does_and_told_once(clip_score: ClipScore) -> None:
    long = "red apple on a blue background and " * 8
    with pytest.warns(UserWarning, match="clip_score: 1 of 2 prompts longer than the 24 tokens that CLIP reads"):
        values = scores_of(clip_score, PICTURES[:2], prompts=[long, PROMPTS[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores_of(clip_score, PICTURES[:2], prompts=[long, PROMPTS[0]]) == values
    with pytest.warns(UserWarning, match="clip_score: 1 of 1 prompt longer"):
        cut = scores_of(clip_score, PICTURES[:1], prompts=[long + " and more"])
    assert cut == pytest.approx(values[:1], abs=1e-4)


def test_identity_says_whose_weights_they_are(clip_score: ClipScore, clip_folder: Path) -> None:
    found = re.fullmatch(rf"clip_score \({clip_folder}, ([0-9a-f]{{12}})\)", clip_score.identity)
    assert found
    assert clip_score.source.digest().startswith(found[1])


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def edited(name: str, **values: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **values}), encoding="utf-8")

    return edit


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_projection(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("config.json"), "has no config.json; give a CLIP as transformers saves it"),
        (without("preprocessor_config.json"), "has no preprocessor_config.json"),
        (without("merges.txt"), "has no tokenizer.json, nor vocab.json and merges.txt"),
        (without("model.safetensors"), "has no model.safetensors, and pickled weights are not read"),
        (edited("config.json", model_type="siglip"), "holds a model of type 'siglip'; give a CLIP"),
        (edited("config.json", auto_map={"AutoModel": "mine.Clip"}), "asks for code of its own"),
        (edited("config.json", projection_dim=8), "holds weights of another model than its config.json"),
        (cut_off, "model.safetensors"),
        (without_projection, "lacks 1 of CLIP's tensors, such as visual_projection.weight"),
    ],
)
def test_a_broken_clip_is_told_by_the_metric(
    clip_folder: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    damage(tmp_path / "clip")
    metric = ClipScore(ClipSource.from_option(str(tmp_path / "clip")))
    with pytest.raises(MetricFault, match=f"clip_score: .*{re.escape(said)}"):
        metric.prepare("cpu")


def test_a_hub_id_is_looked_for_in_the_cache_and_the_command_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_folder: Path
) -> None:
    """The default's safetensors are in a revision of the repository that the hub's bot made."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    default = ClipSource.from_option("openai/clip-vit-base-patch32")
    assert (default.kind, default.revision) == ("hub", "refs/pr/15")
    said = "hf download openai/clip-vit-base-patch32 --revision refs/pr/15 --include"
    with pytest.raises(MetricFault, match=f"clip_score: openai/clip-vit-base-patch32 is not complete .*{said}"):
        ClipScore(default).prepare("cpu")
    repository = tmp_path / "models--mine--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v2").write_text("a" * 40, encoding="utf-8")
    shutil.copytree(clip_folder, repository / "snapshots" / ("a" * 40))
    metric = ClipScore(ClipSource.from_option("mine/clip@v2"))
    assert metric.identity.startswith("clip_score (mine/clip@v2, ")
    assert 0 <= scores_of(metric, PICTURES[:1], prompts=PROMPTS[:1])[0] <= 100
    without("merges.txt")(repository / "snapshots" / ("a" * 40))
    with pytest.raises(
        MetricFault, match=r"vocab.json and merges.txt; .* Fetch all of mine/clip: .*mine/clip@REVISION"
    ):
        ClipScore(ClipSource.from_option("mine/clip@v2")).prepare("cpu")


# --- faulty metrics ----------------------------------------------------------------------------------------------


class Given(Metric):
    """Gives the values that it was given, or raises."""

    name = "given"
    higher_is_better = True
    needs_references = False
    lowest = 0.0
    highest = 1.0

    def __init__(self, values: Any) -> None:
        self.values = values

    def score(
        self, images: Sequence[Image.Image], references: Sequence[Image.Image], prompts: Sequence[str], device: str
    ) -> Any:
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, math.nan, 1.0], "given: gave nan for picture 2 of 3: 0.5, nan, 1"),
        ([0.5, 0.25, math.inf], "given: gave inf for picture 3 of 3: 0.5, 0.25, inf"),
        ([0.5, 0.25], "given: gave 2 values for 3 pictures, not one each: 0.5, 0.25"),
        ([], "given: gave 0 values for 3 pictures, not one each"),
        ([0.5] * 9, "given: gave 9 values for 3 pictures, not one each: " + "0.5, " * 8 + "..."),
        ([-0.5, 0.5, 0.5], "given: gave -0.5 for picture 1 of 3, outside of its range from 0 to 1: -0.5, 0.5, 0.5"),
        (None, "given: scoring 3 pictures failed: TypeError: "),
        ([None] * 3, "given: scoring 3 pictures failed: TypeError: "),
        (KeyError("weights"), "given: scoring 3 pictures failed: KeyError: 'weights'"),
        (MetricFault("given: start its server"), "given: start its server"),
    ],
)
def test_a_faulty_metric_is_told_by_name_with_its_values(values: Any, said: str) -> None:
    with pytest.raises(MetricFault) as caught:
        scores_of(Given(values), PICTURES)
    assert str(caught.value).startswith(said)


def test_values_may_be_of_any_number_type_and_round_beyond_the_range() -> None:
    for values in (np.array([0, 0.5, 1]), torch.tensor([0, 0.5, 1]), (0, 0.5, 1 + 1e-9)):
        assert scores_of(Given(values), PICTURES) == pytest.approx([0, 0.5, 1])


def test_what_a_metric_needs_is_checked_before_it_is_asked() -> None:
    with pytest.raises(ValueError, match="3 images cannot be compared with 0 references"):
        scores_of(Psnr(), PICTURES)
    with pytest.raises(ValueError, match="given: there are no images to score"):
        scores_of(Given([]), [])


# --- the registry ------------------------------------------------------------------------------------------------


def test_the_registry_knows_the_built_in_ones_and_names_them() -> None:
    registry = MetricRegistry()
    assert registry.names == ["lpips", "lpips_alex", "lpips_vgg", "psnr", "ssim", "clip_score"]
    assert [metric.name for metric in registry] == registry.names
    assert "psnr" in registry
    assert registry["psnr"].unit == "dB"
    with pytest.raises(ValueError, match=r"no metric 'clipscore' \(did you mean clip_score\?\); valid: lpips, .*"):
        registry["clipscore"]
    assert all(metric.weights for metric in registry if "lpips" in metric.name or "clip" in metric.name)


def named(**attributes: object) -> Metric:
    return type("Mine", (Given,), attributes)([])


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (named(name="PSNR"), "PSNR: a metric psnr is registered already; give it another name"),
        (named(name="my metric"), "Mine: name = 'my metric'; write up to 40 ASCII letters"),
        (named(name="mine", higher_is_better=None), "mine: higher_is_better = None; write True or False"),
        (named(name="mine", lowest=1.0), "mine: its range goes from 1.0 to 1.0; give the lower end first"),
        (Given, "Given is a class; register a metric: registry.register(Given())"),
        ("psnr", "'psnr' is no metric; derive its class from pytest_diffaccel.measure.metrics.base.Metric"),
    ],
)
def test_what_cannot_be_registered_says_why(metric: Any, said: str) -> None:
    registry = MetricRegistry()
    with pytest.raises(ValueError, match=re.escape(said)):
        registry.register(metric)
    assert registry.names == MetricRegistry().names


# --- the hook, the example and the page --------------------------------------------------------------------------

EXAMPLE = ROOT / "examples" / "own_metric" / "conftest.py"
KNOWN = """
from pytest_diffaccel.measure.metrics.base import scores_of


def test_known(diffaccel_run, worker_id):
    from PIL import Image

    metric = diffaccel_run.metrics["sharpness"]
    assert scores_of(metric, [Image.new("RGB", (8, 8))]) == (0.0,)
    assert diffaccel_run.metrics["clip_score"].source.location == "mine/clip"
    assert worker_id == "gw0"
"""


def test_the_example_is_known_in_worker_processes(pytester: pytest.Pytester) -> None:
    shutil.copy(EXAMPLE, pytester.path)
    pytester.makepyfile(KNOWN)
    pytester.runpytest_subprocess("-n", "1", "--pipe", "SD1.5", "--clip-model", "mine/clip").assert_outcomes(passed=1)


def test_the_example_says_how_sharp_pictures_are() -> None:
    metric = runpy.run_path(str(EXAMPLE))["Sharpness"]()
    blurred = [PICTURES[0].filter(ImageFilter.GaussianBlur(radius)) for radius in (3, 2, 1)]
    values = scores_of(metric, [Image.new("RGB", (32, 32), "red"), *blurred, PICTURES[0]])
    assert values[0] == 0
    assert list(values) == sorted(set(values))


def test_a_metric_that_is_refused_ends_the_session_in_words(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(EXAMPLE.read_text(encoding="utf-8").replace('"sharpness"', '"psnr"'))
    result = pytester.runpytest_inprocess("--pipe", "SD1.5")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: psnr: a metric psnr is registered already; give it another name"])


def test_the_page_shows_a_metric_from_another_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this interpreter as the other one, and a module that stands in for the package."""
    page = (ROOT / "docs" / "own_metric.md").read_text(encoding="utf-8")
    _, script, metric_text = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("score_images.py").write_text(script, encoding="utf-8")
    Path("ImageReward.py").write_text(STAND_IN, encoding="utf-8")
    space: dict[str, Any] = {}
    exec(compile(metric_text, "own_metric.md", "exec"), space)
    registry = MetricRegistry()
    space["pytest_diffaccel_metrics"](registry=registry)
    metric = registry["image_reward"]
    with pytest.raises(MetricFault, match="image_reward: there is no rewards/bin/python; make the environment"):
        metric.prepare("cpu")
    monkeypatch.setattr(metric, "python", sys.executable)
    metric.prepare("cpu")
    assert scores_of(metric, PICTURES[:2], prompts=["a", "tree"]) == (-1.5, 2.5)
    with pytest.raises(MetricFault, match=r"score_images.py failed: loading .* cpu\nno such prompt"):
        scores_of(metric, PICTURES[:1], prompts=["nothing"])


STAND_IN = """
from PIL import Image


def load(name, device):
    print("loading", name, device)
    return Model()


class Model:
    def score(self, prompt, path):
        assert Image.open(path).size == (32, 32)
        return {"a": -1.5, "tree": 2.5}[prompt] if prompt in ("a", "tree") else exit("no such prompt")
"""
