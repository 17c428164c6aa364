"""The state of a training on disk: one safetensors file (weights, averages, optimiser) and one JSON file (counters)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGE_EVERY = 4  # steps between updates of the weights' average, whose own cost is then not felt
AVERAGE_DECAY = 0.999  # a step


@dataclass
class Counters:
    """How far a training is: optimiser steps, seconds spent in them, pictures seen."""

    step: int = 0
    elapsed_s: float = 0.0
    samples: int = 0


class Average:
    """An exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.source = dict(model.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; early averages forget faster, so that the initial weights leave no trace."""
        if step % AVERAGE_EVERY:
            return
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step)) ** AVERAGE_EVERY
        get_ema_multi_avg_fn(decay)(list(self.values.values()), list(self.source.values()), step)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters in place; calling it twice changes nothing."""
        for name, parameter in self.source.items():
            kept = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; parameters that never had a gradient have none."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{key}": value for number, entry in state.items() for key, value in entry.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put tensors named by ``optimiser_tensors`` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


class Checkpoint:
    """A folder's checkpoint; writing replaces the old one only when the new one is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counters_file = folder / "checkpoint.json"

    def save(self, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer, counters: Counters) -> None:
        """Write everything that an exact continuation needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(optimiser).items()}
        file = self.folder / f"step{counters.step}.safetensors"
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, file)
        temporary = self.counters_file.with_suffix(".new")
        temporary.write_text(json.dumps({**asdict(counters), "file": file.name}, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.counters_file)  # from here on the new tensors count
        for old in self.folder.glob("step*.safetensors"):
            if old != file:
                old.unlink()

    def load(self, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer) -> Counters:
        """Continue from the saved state; fresh counters where there is none."""
        if not self.counters_file.exists():
            return Counters()
        saved = json.loads(self.counters_file.read_text(encoding="utf-8"))
        tensors = load_file(self.folder / saved.pop("file"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
            for name, value in average.values.items():
                value.copy_(tensors[f"average.{name}"])
        prefix = "optimiser."
        kept = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        restore_optimiser(optimiser, kept)
        return Counters(**saved)
