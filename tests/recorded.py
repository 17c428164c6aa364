"""A search made by hand: store, golden, pictures and logs as one leaves them, without a pipeline."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell, Params
from pytest_diffaccel.measure.deciding import BY_LPIPS
from pytest_diffaccel.measure.measurement import (
    Block,
    Interval,
    Measurement,
    MetricValues,
    Quality,
    RunTiming,
    Sampling,
)
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.prompts import digest
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.records.contents import Contents, GroupWinners, Recorded
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.images import ImageStore, image_set
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.search.decide.select import Option, choose
from pytest_diffaccel.search.outcome import golden_entry
from pytest_diffaccel.search.verify.verification import Winner

CELL = Cell("SD1.5", "DDIM", 20)
#: What a prompt or a message may hold that a page must show and not run.
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
_STEP_S = 0.05
_SAMPLES = 4


def environment(pipe: str = "SD1.5", torch: str = "2.14.1") -> Environment:
    return Environment(
        pipe=pipe,
        model_source=f"embedded stand-in, not {pipe}",
        weights={"unet": "ab" * 32},
        device="a test's machine (2 cores)",
        driver="",
        threads=1,
        versions={"python": "3.11.7", "torch": torch},
        dtype="float32",
        image_size=(64, 64),
        batch_size=4,
        guidance_scale=5.0,
        scale=QualityScale(repeat=0.0, batch=1e-8, one_ulp=6e-8, unrelated=0.165),
    )


class RecordedSearch:
    """A folder with a search's leavings.

    Attributes:
        path: the folder.
        store: the SQLite file.
        golden: where golden would be.
        prompts: the search's prompts file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / ".diffaccel"
        self.work.mkdir(parents=True)
        self.store = self.work / "search.sqlite"
        self.golden = path / "golden" / "search_params.json"
        self.prompts = path / "prompts.txt"
        self.prompts.write_text(f"red apple\ngreen pear {HOSTILE}\nblue fish\n=1+1\nyellow car\n", encoding="utf-8")

    def sampling(self, purpose: str = "search") -> Sampling:
        return Sampling(_SAMPLES, 4, 0, digest(read_prompt_file(self.prompts).prompts), purpose)

    def fill(self, cell: Cell = CELL, grid: Sequence[Params] | None = None) -> None:
        """A finished search of a cell: candidates, two winners verified, their rival, a skipped one and a failure."""
        grid = deepcache_grid() if grid is None else grid
        described = environment(cell.pipe)
        with Store.open(self.store) as store:
            store.save_environment(described)
            searched = [Candidate(cell, "DeepCache", params) for params in grid]
            for place, one in enumerate(searched):
                store.save(self.measurement(one, described, "search", started_at=10.0 * place))
            for place, one in enumerate(searched):
                store.save(self.measurement(one, described, "winner", started_at=5000.0 + 10 * place))
                self.draw(one, described)
            for steps in range(1, cell.steps + 1):
                store.save(self._rival(cell, steps, described))
            skipped = Candidate(cell, "DeepCache", {"DeepCache": {"cache_interval": 9, "cache_branch_id": 9}})
            store.save_decision(skipped, described.id, self.sampling(), f"predicted 1.01x: {HOSTILE}")
            failed = Candidate(cell, "DeepCache", {"DeepCache": {"cache_interval": 8, "cache_branch_id": 8}})
            store.save_failure(failed, described.id, self.sampling(), "error", f"RuntimeError: {HOSTILE}")
            store.save_group(cell, "DeepCache", described.id, self.sampling(), "done")
            store.save_winners(self.winners(cell, searched))
        logs = self.work / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"{cell}.log").write_text(f"12:00 failed: test_search[{failed.key}] {HOSTILE}\n", encoding="utf-8")

    def score(self, *intervals: int) -> None:
        """CLIP scores of verified candidates with branch 0, which fall with the interval, and of three rivals."""
        with Store.open(self.store) as store:
            for one in [recorded.measurement for recorded in store.contents().measurements]:
                interval = one.candidate.params.get("DeepCache", {}).get("cache_interval")
                is_winner = one.sampling.purpose == "winner" and interval in intervals
                if is_winner and one.candidate.params["DeepCache"]["cache_branch_id"] == 0:
                    store.save(replace(one, metrics={"clip_score": clip_scores(0.5 * interval)}))
                elif one.sampling.rival_of is not None and one.candidate.cell.steps in (5, 10, 15):
                    store.save(replace(one, metrics={"clip_score": clip_scores(0.2 * (20 - one.candidate.cell.steps))}))

    def winners(self, cell: Cell, candidates: Sequence[Candidate], max_loss: float = 0.25) -> GroupWinners:
        """What a search chooses of candidates, all of which are verified, each by its own blocks."""
        described = environment(cell.pipe)
        made = {one.key: self.measurement(one, described, "winner") for one in candidates}
        options = [Option(one.candidate, one.speedup, one.quality.lpips_per_sample) for one in made.values()]
        entries = {}
        for choice in (choose(options, target, max_loss) for target in TARGETS):
            if choice.option is not None:
                fewer = self._rival(cell, int(cell.steps / choice.option.speedup.value), described)
                winner = Winner(choice, made[choice.option.candidate.key], None if choice.reason else fewer)
                entries[choice.target] = golden_entry(winner, described)
        speedups = {key: one.speedup for key, one in made.items()}
        return GroupWinners(cell, "DeepCache", described.id, self.sampling(), entries, speedups)

    def material(self, cells: Sequence[Cell], grid: Sequence[Params]) -> Material:
        """What a report of many candidates is made of, without a store: every twentieth is verified."""
        measurements = [
            Recorded(
                self.measurement(Candidate(cell, "DeepCache", params), environment(cell.pipe), purpose), "2026-11-24"
            )
            for cell in cells
            for purpose, chosen in (("search", grid), ("winner", grid[::20]))
            for params in chosen
        ]
        environments = {described.id: described for described in (environment(cell.pipe) for cell in cells)}
        contents = Contents(tuple(measurements), (), (), environments)
        for one in measurements:
            if one.measurement.sampling.purpose == "winner":
                self.draw(one.measurement.candidate, environments[one.measurement.environment])
        images = ImageStore(self.work / "images")
        golden, logs = Golden(self.golden, {}, {}), self.work / "logs"
        return Material(contents, default_registry(), BY_LPIPS.rule, golden, images, logs)

    def measurement(
        self, candidate: Candidate, described: Environment, purpose: str, started_at: float = 0.0
    ) -> Measurement:
        """A measurement with blocks that fit its speed-up; losses grow with the interval."""
        blocks, speedup, by_wall = _timed(json.dumps(candidate.params), candidate.cell.steps, started_at)
        interval = candidate.params["DeepCache"]["cache_interval"]
        loss = 0.004 * interval * (1 + candidate.params["DeepCache"]["cache_branch_id"] / 10)
        losses = tuple(round(loss * factor, 6) for factor in (0.7, 0.9, 1.1, 1.3))
        return Measurement(
            candidate=candidate,
            environment=described.id,
            sampling=self.sampling(purpose),
            speedup=speedup,
            wall_speedup=by_wall,
            estimates_agree=True,
            quality=Quality(Interval(loss, 0.8 * loss, 1.2 * loss), 31.5, 0.97, losses),
            blocks=blocks,
            fired={"cached_steps": 10},
            peak_memory_mb=812.5,
        )

    def _rival(self, cell: Cell, steps: int, described: Environment) -> Measurement:
        loss = 0.2 * (1 - steps / cell.steps)
        speedup = cell.steps / steps
        return Measurement(
            candidate=Candidate(replace(cell, steps=steps), "", {}),
            environment=described.id,
            sampling=self.sampling("winner").instead_of(cell.steps),
            speedup=Interval(speedup, speedup, speedup),
            wall_speedup=Interval(speedup, speedup, speedup),
            estimates_agree=True,
            quality=Quality(Interval(loss, 0.9 * loss, 1.1 * loss), 30.0, 0.9, (loss,) * _SAMPLES),
            blocks=(),
        )

    def draw(self, candidate: Candidate, described: Environment, side: int = 64) -> None:
        """A winner's pictures and the unaccelerated ones: gradients."""
        images, sampling = ImageStore(self.work / "images"), self.sampling("winner")
        gradient = Image.radial_gradient("L").resize((side, side))
        plain = [Image.merge("RGB", (gradient, gradient.rotate(90 * place), gradient)) for place in range(_SAMPLES)]
        moved = [image.rotate(7) for image in plain]
        if images.find(image_set(described.id, str(candidate.cell), sampling)) is None:
            images.save(image_set(described.id, str(candidate.cell), sampling), plain)
        images.save(image_set(described.id, candidate.key, sampling), moved)


def clip_scores(loss: float) -> MetricValues:
    """Those of four pictures that lose about so much, each of which took half a second."""
    plain = (28.0, 30.0, 27.0, 31.0)
    own = tuple(value - loss * factor for value, factor in zip(plain, (0.9, 1.1, 1.0, 1.0), strict=True))
    return MetricValues("clip", own, plain, higher_is_better=True, seconds=2.0)


def deepcache_grid() -> list[Params]:
    return [
        {"DeepCache": {"cache_interval": interval, "cache_branch_id": branch}}
        for interval in (2, 3, 5)
        for branch in (0, 1, 2)
    ]


@cache
def _timed(params: str, steps: int, started_at: float) -> tuple[tuple[Block, ...], Interval, Interval]:
    """Blocks and what they say, which cells of as many steps have in common."""
    candidate = Candidate(replace(CELL, steps=steps), "DeepCache", json.loads(params))
    blocks = tuple(block(candidate, started_at + number) for number in range(3))
    return blocks, step_kind_speedup(blocks), wall_speedup(blocks)


def block(candidate: Candidate, started_at: float) -> Block:
    """One baseline and one accelerated run, with a little noise that is the same at every call."""
    kinds = default_registry().for_params(candidate.params).kinds(candidate.params, candidate.cell.steps)
    drift = 1 + 0.02 * math.sin(started_at)
    branch = candidate.params["DeepCache"]["cache_branch_id"]
    steps = tuple(_STEP_S * drift * (1.02 if "full" in kind else 0.1 + 0.1 * branch) for kind in kinds)
    plain = tuple(_STEP_S * drift for _ in kinds)
    accelerated = RunTiming(0.06 + sum(steps), steps, kinds)
    return Block(RunTiming(0.05 + sum(plain), plain, ("plain",) * len(kinds)), (accelerated,), "", started_at)
