"""One optimiser step, replayed as a CUDA graph on a GPU, where small UNets would mostly wait for kernel launches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

MAX_GRADIENT_NORM = 1.0
EAGER_STEPS = 3  # before a capture, so that libraries and the optimiser have allocated what they need


class Task(nn.Module, ABC):
    """What a training trains: a model, how its inputs are drawn, and the loss of drawn inputs (its forward).

    Attributes:
        precision: of the weights in forward and backward; the optimiser's are float32.
    """

    precision: torch.dtype = torch.bfloat16

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The inputs of a step, drawn by a generator that the step number alone seeds."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar loss of drawn inputs, with the model's weights in ``precision``."""


class Replay:
    """A captured step: copies inputs to where the graph reads them, replays it, and returns the loss's place."""

    def __init__(self, step: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(value.clone() for value in inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = step(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the step on these inputs."""
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.loss


class Stepper:
    """Runs optimiser steps of a task: forward and backward in the task's precision, weights and optimiser in float32.

    Autocast would do normalisations in float32, and moving their activations takes most of the time of narrow models.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device
        on_gpu = device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu  # shapes never change, so the search for the fastest pays
        # Its backward fails on an H100 (torch 2.11, CUDA 13.0) with heads of 48 channels; flash attention does them.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.weights = {f"model.{name}": value for name, value in task.model.named_parameters()}
        self.parameters = list(self.weights.values())
        # A tensor, because a captured graph would keep a number for ever.
        self.rate = torch.zeros((), device=device) if on_gpu else None
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=0.0 if self.rate is None else self.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
            capturable=on_gpu,
        )
        self.replays: dict[tuple[torch.Size, ...], Replay] = {}
        self.eager_steps: dict[tuple[torch.Size, ...], int] = {}

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimiser.param_groups:
            if self.rate is None:
                group["lr"] = rate
            else:
                group["lr"] = self.rate  # loading an optimiser state replaces the tensor
                self.rate.fill_(rate)

    def eager(self, *inputs: Tensor) -> Tensor:
        """One step, launched kernel by kernel."""
        self.optimiser.zero_grad(set_to_none=True)
        rounded = {name: value.to(self.task.precision) for name, value in self.weights.items()}
        loss: Tensor = functional_call(self.task, rounded, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimiser.step()
        return loss.detach()

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One step; returns its loss as a tensor that the next call may overwrite."""
        if self.device.type != "cuda":
            return self.eager(*inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self.replays:
            done = self.eager_steps.get(shapes, 0)
            if done < EAGER_STEPS:
                self.eager_steps[shapes] = done + 1
                return self._beside(inputs)
            self.replays[shapes] = Replay(self.eager, inputs)
        return self.replays[shapes](*inputs)

    def _beside(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """An eager step on a side stream, as captures ask for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.eager(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return loss
