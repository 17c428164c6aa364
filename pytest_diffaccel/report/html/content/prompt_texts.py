"""What was drawn: a store keeps a digest of its prompts, so their text is found where it still lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.prompts import Purpose, default_prompts, digest, select
from pytest_diffaccel.models.registry import ModelSpec


@dataclass(frozen=True)
class Prompts:
    """Prompts by digest.

    Attributes:
        file: a user's own prompts, as ``FILE`` or ``FILE:COLUMN``, or None.
    """

    file: Path | None = None

    @cached_property
    def _by_digest(self) -> dict[str, tuple[str, ...]]:
        return {digest(prompts): prompts for prompts in self._known()}

    def _known(self) -> Iterable[tuple[str, ...]]:
        if self.file is not None:
            yield read_prompt_file(self.file).prompts
        for pipe in PIPES:
            for spec in (ModelSpec.from_embedded(pipe), ModelSpec.from_hub(pipe)):
                try:
                    yield default_prompts(spec)
                except FileNotFoundError:
                    continue

    def of(self, sampling: Sampling, place: int) -> str:
        """The prompt of a sample, or its number where the prompts are not known here."""
        prompts = self._by_digest.get(sampling.prompts_digest)
        if prompts is None or sampling.purpose not in ("search", "winner"):
            return f"prompt {place + 1}"
        purpose = cast(Purpose, sampling.purpose)
        return select(prompts, sampling.num_samples, sampling.seed, purpose)[place][0]
