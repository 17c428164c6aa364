"""``python -m training.judge``: judge the embedded pipelines and CLIP, print tables, and write the picture grids."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console
from rich.table import Table

from pytest_diffaccel import load_pipeline
from pytest_diffaccel.matrix import Params
from training.captions import sample_prompts
from training.cards import GUIDANCE
from training.clip_judging import Clip, generated_held_out, judge_clip, rendered_held_out
from training.figures import acceleration_grid, held_out_grid, seeds_grid
from training.flux_architecture import FLUX
from training.flux_judging import STEPS, FluxJudged, judge_flux, made_of
from training.flux_report import GUIDANCE as FLUX_GUIDANCE
from training.flux_report import write_section
from training.judging import BATCH, Judged, acceleration_ladder, check_held_out, fastest_s, moved_by, spread
from training.source import EMBEDDED

Figures: TypeAlias = dict[str, float]

FIGURES = Path(__file__).parent / "figures"
README = Path(__file__).parent / "README.md"
CLIP = EMBEDDED / "clip_standin"
SEEDS = 2  # of each held-out prompt, for the CLIP
NAMES = {"sd15": "SD1.5", "sd21": "SD2.1", "sdxl": "SDXL"}
# SDXL's first block has no attention, so there is nothing to merge at full resolution.
MAX_DOWNSAMPLE = {"sd15": 1, "sd21": 1, "sdxl": 2}
PROMPTS = 32  # of the LPIPS figures
STRENGTHS = {"DeepCache": "cache_interval", "T-Gate": "gate_step", "ToMe": "ratio"}


def label(params: Params) -> str:
    """A setting in words: its method and the parameter that the ladder varies."""
    ((method, values),) = params.items()
    return f"{method} {STRENGTHS[method]} {values[STRENGTHS[method]]}"


def judge_quality(pipe: str, judged: Judged, figures: Path | None) -> Figures:
    """All that does not depend on the machine; distances are LPIPS."""
    ladder = acceleration_ladder(MAX_DOWNSAMPLE[pipe])
    prompts = sample_prompts()[:PROMPTS]
    seeds = range(PROMPTS)
    held_out = check_held_out(judged, first_seed=0)
    if figures is not None:
        held_out_grid(held_out.pictures, figures / f"{pipe}_held_out.png")
        seeds_grid(judged, figures / f"{pipe}_seeds.png")
        acceleration_grid(judged, ladder, figures / f"{pipe}_accelerated.png")
    apart = spread(judged, prompts, seeds)
    moved = moved_by(judged, ladder, prompts, seeds)
    return {
        f"held-out prompts (of {len(held_out.beaten)}) nearer to own reference than to 95%": held_out.passed,
        "... nearest to own reference of all": held_out.nearest,
        "LPIPS between prompts": apart.prompts,
        "LPIPS between seeds of a prompt": apart.seeds,
        "LPIPS between 20 and 25 steps": apart.steps,
        **{f"LPIPS {label(params)}": distance for params, distance in zip(ladder, moved, strict=True)},
    }


def judge_speed(pipe: str, judged: Judged, rounds: int) -> Figures:
    """Seconds of one batch of four, and speed-ups: on a quiet machine, or the load shown beside tells how far off."""
    ladder = acceleration_ladder(MAX_DOWNSAMPLE[pipe])
    load_before = os.getloadavg()[0]
    plain_s, *faster_s = fastest_s(judged, [{}, *ladder], sample_prompts()[:BATCH], rounds)
    return {
        "4 pictures, 20 steps (s)": plain_s,
        "load average before": load_before,
        "load average after (own share included)": os.getloadavg()[0],
        **{f"speed-up {label(params)}": plain_s / seconds for params, seconds in zip(ladder, faster_s, strict=True)},
    }


def judge_clip_of(folder: Path, judged: dict[str, Judged]) -> dict[str, Figures]:
    """The CLIP on rendered pictures of both sizes and on those of the pipelines, a column each."""
    clip = Clip.load(folder)
    sides = sorted({each.pixels for each in judged.values()})
    columns = {f"rendered, {side} px": judge_clip(clip, *rendered_held_out(side)) for side in sides}
    return columns | {pipe: judge_clip(clip, *generated_held_out(each, SEEDS)) for pipe, each in judged.items()}


def table(title: str, columns: dict[str, Figures]) -> Table:
    """One row per figure, one column per pipeline. Labels are the first one's: SDXL's ToMe merges one level deeper."""
    result = Table(title=title)
    result.add_column("")
    for pipe in columns:
        result.add_column(pipe, justify="right")
    for name in next(iter(columns.values())):
        cells = [figures[name] for figures in columns.values()]
        result.add_row(name, *(str(cell) if isinstance(cell, int) else f"{cell:.3f}" for cell in cells))
    return result


def judge_flux_folder(options: argparse.Namespace) -> Figures:
    """FLUX.1's stand-in in a folder; with ``--readme`` its figures are also written where all can read them."""
    made = made_of(options.flux)
    if options.readme:
        made.check()
    judged = replace(FluxJudged.load(options.flux, options.device), guidance=options.guidance)
    figures = judge_flux(judged, Clip.load(options.clip), None if options.no_figures else options.figures)
    if options.readme:
        write_section(README, made, figures)
    return figures


def judge_pipes(options: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """The Stable Diffusion stand-ins, by part and pipe."""
    pipes = list(NAMES) if options.pipe == "all" else [options.pipe]
    figures = None if options.no_figures else options.figures
    judged = {pipe: Judged(load_pipeline(NAMES[pipe], device="cpu"), options.guidance) for pipe in pipes}
    results: dict[str, dict[str, Figures]] = {}
    if options.part in ("speed", "all"):
        results["Speed"] = {pipe: judge_speed(pipe, judged[pipe], options.rounds) for pipe in pipes}
    if options.part in ("quality", "all"):
        results["Quality"] = {pipe: judge_quality(pipe, judged[pipe], figures) for pipe in pipes}
    if options.part in ("clip", "all"):
        results["CLIP"] = judge_clip_of(options.clip, judged)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("--pipe", choices=[*NAMES, "all", FLUX.name], default="all")
    parser.add_argument("--part", choices=["quality", "speed", "clip", "all"], default="all")
    parser.add_argument("--clip", type=Path, default=CLIP, help="folder of the CLIP under judgement")
    parser.add_argument("--flux", type=Path, default=EMBEDDED / FLUX.name, help="folder of FLUX.1's stand-in")
    parser.add_argument("--device", default="cpu", help="of FLUX.1's stand-in; the others are judged on a CPU")
    parser.add_argument("--readme", action="store_true", help="also write flux1's figures to training/README.md")
    parser.add_argument("--guidance", type=float, help=f"default: {GUIDANCE}, of flux1 {FLUX_GUIDANCE}")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of every setting; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the picture grids")
    parser.add_argument("--no-figures", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    is_flux = options.pipe == FLUX.name
    if is_flux and options.part not in ("quality", "all"):
        parser.error(f"--part {options.part}: {FLUX.name} is judged by its quality only")
    options.guidance = options.guidance or (FLUX_GUIDANCE if is_flux else GUIDANCE)
    results = {"Quality": {FLUX.name: judge_flux_folder(options)}} if is_flux else judge_pipes(options)
    sampling = f"FlowMatchEuler, {STEPS} steps" if is_flux else "DDIM, 20 steps"
    for title, columns in results.items():
        Console(width=120).print(table(f"{title} ({sampling}, guidance {options.guidance})", columns))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
