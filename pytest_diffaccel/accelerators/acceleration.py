"""``accelerate``: generate images with a pipeline and accelerator parameters, and leave the pipeline as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.calls import check_call, check_class, is_guided
from pytest_diffaccel.accelerators.composition import Accelerator, Registry, default_registry
from pytest_diffaccel.accelerators.counters import FiredCounters
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.matrix import Params, format_params
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from PIL.Image import Image


class MethodDidNotAct(RuntimeError):
    """A method was applied and changed nothing: its figures would be those of the unaccelerated pipeline."""


class StepCountError(RuntimeError):
    """The denoiser was not called once a step."""


class UnknownCounter(ValueError):
    """A method names a counter that nothing counts: whether it acts cannot be told."""


class _Enough(Exception):
    """Ends a generation of which only the first steps are wanted."""


class Observer(Protocol):
    """Is told of the events of one generation, in order; :mod:`pytest_diffaccel.measure.clock` keeps their times."""

    def started(self) -> None:
        """The call is about to begin."""

    def denoiser_called(self) -> None:
        """A denoiser call is about to begin."""

    def step_ended(self) -> None:
        """The scheduler has made its step."""

    def ended(self) -> None:
        """The images are there."""


@dataclass
class Generate:
    """Generates batches with fixed settings; what ``accelerate`` gives.

    Attributes:
        pipeline: the diffusers pipeline.
        accelerator: the methods applied; none for the baseline.
        params: their parameters.
        steps: denoising steps.
        guidance_scale: None for the pipeline's own default.
        height: image height in pixels; None for the pipeline's own default.
        width: image width in pixels; None for the pipeline's own default.
        fired: what the methods did in the last counted generation, by counter.
    """

    pipeline: Any
    accelerator: Accelerator
    params: Params
    steps: int
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    fired: dict[str, int] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each denoiser call, in order."""
        return self.accelerator.kinds(self.params, self.steps)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        """One image a prompt, in one batch.

        The first call checks that every method acts.

        Args:
            prompts: what to draw; the batch size is their number.
            seeds: one a prompt. The start noise of an image depends on its seed alone.

        Returns:
            PIL images in prompt order.

        Raises:
            ValueError: when there are not as many seeds as prompts, or none.
            MethodDidNotAct: when a method had no effect.
        """
        return self.observed(prompts, seeds, None) if self.fired else self.counted(prompts, seeds)

    def counted(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        """As a call, counting what the methods do (into :attr:`fired`), which takes a little longer.

        Raises:
            MethodDidNotAct: when a method had no effect.
            StepCountError: when the denoiser was not called once a step.
            UnknownCounter: when a method names a counter that there is not.
        """
        # Without guidance no call is on half of a batch.
        runs = 2 if is_guided(self.pipeline, self.guidance_scale) else 1
        counters = FiredCounters(full_batch=runs * len(prompts))
        expected = self.accelerator.counters(self.params, self.steps)
        if unknown := sorted(expected - counters.counts.keys()):
            raise UnknownCounter(
                f"{self.accelerator.name} names {', '.join(unknown)} among its counters, which nothing counts, so that "
                f"nobody can tell whether it acts; counted are {', '.join(counters.counts)}"
            )
        images = self._generate(prompts, seeds, None, counters)
        self.fired = counters.counts
        silent = sorted(expected - {name for name, count in self.fired.items() if count})
        if silent:
            raise MethodDidNotAct(
                f"{self.accelerator.name} with {format_params(self.params)} had no effect: {', '.join(silent)} stayed 0"
            )
        if self.fired["denoiser_calls"] != self.steps:
            raise StepCountError(f"{self.fired['denoiser_calls']} denoiser calls for {self.steps} steps")
        return images

    def observed(self, prompts: Sequence[str], seeds: Sequence[int], observer: Observer | None) -> list[Image]:
        """As a call, telling ``observer`` of its events; nothing is counted or checked."""
        return self._generate(prompts, seeds, observer, None)

    def begun(self, prompts: Sequence[str], seeds: Sequence[int], observer: Observer, steps: int) -> None:
        """As :meth:`observed`, but ended after its first ``steps`` steps: they are those of a whole generation.

        Args:
            prompts: what would be drawn.
            seeds: one a prompt.
            observer: is told of the end, too.
            steps: 1 to :attr:`steps`.
        """
        with suppress(_Enough):
            self._generate(prompts, seeds, _FirstSteps(observer, steps), None)
        observer.ended()

    def _generate(
        self, prompts: Sequence[str], seeds: Sequence[int], observer: Observer | None, counters: FiredCounters | None
    ) -> list[Image]:
        import torch

        if len(prompts) != len(seeds) or not prompts:
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a prompt, at least one")
        pipeline = self.pipeline
        devices = [pipeline.device] if pipeline.device.type == "cuda" else []
        # Methods are applied for each call anew: DeepCache's features and T-GATE's attention outputs would survive into
        # the next call, and ToMe's random generator, forked from the global one, would go on from where it was.
        # Without methods nothing touches the modules but hooks, which go by themselves.
        with (
            restored(pipeline, modules=bool(self.accelerator.methods)),
            torch.random.fork_rng(devices),
            ExitStack() as stack,
        ):
            torch.manual_seed(seeds[0])
            call = self.accelerator.apply(pipeline, pipeline.__call__, self.params)
            options = self._options(prompts, seeds)
            if counters:
                stack.enter_context(counters.attached(denoiser_of(pipeline)))
            if observer:
                denoiser = denoiser_of(pipeline)
                hook = denoiser.register_forward_pre_hook(lambda _module, _args: observer.denoiser_called())
                stack.callback(hook.remove)
                options["callback_on_step_end"] = _step_end_callback(observer)
                observer.started()
            images: list[Image] = call(**options).images
            if observer:
                observer.ended()
        return images

    def _options(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        import torch

        # Noise is drawn on the CPU: the same seed starts from the same latents on every device.
        options = {
            "prompt": list(prompts),
            "num_inference_steps": self.steps,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        return {name: value for name, value in options.items() if value is not None}


class _FirstSteps:
    """Tells an observer of the first steps, and ends the generation then."""

    def __init__(self, observer: Observer, steps: int) -> None:
        self._left = steps
        self._observer = observer
        self.started, self.denoiser_called = observer.started, observer.denoiser_called

    def step_ended(self) -> None:
        self._observer.step_ended()
        self._left -= 1
        if not self._left:
            raise _Enough

    def ended(self) -> None:
        """Nothing: who wanted the first steps tells of their end."""


def _step_end_callback(observer: Observer) -> Any:
    def on_step_end(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        observer.step_ended()
        return tensors

    return on_step_end


@contextmanager
def accelerate(
    pipeline: Any,
    params: Params,
    *,
    steps: int,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    registry: Registry | None = None,
) -> Iterator[Generate]:
    """Generate images with accelerator parameters.

    ``with accelerate(pipeline, params, steps=20) as generate: images = generate(prompts, seeds)``

    Methods are applied while a generation runs and undone after it; between and after, also after an exception, the
    pipeline is exactly as it was: its next plain call is bit-identical to one before. So several blocks on one
    pipeline may be open at once, and baseline and candidates can take turns.

    Args:
        pipeline: of the class of a pipe that is known (:mod:`pytest_diffaccel.pipes`), or of a subclass: a
            ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        params: parameters by method, for example ``{"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}``;
            ``{}`` generates the baseline, the same way.
        steps: denoising steps, at least 1.
        guidance_scale: classifier-free guidance; None for the pipeline's own default. T-GATE needs more than 1.
        height: image height in pixels, a multiple of 8; None for the pipeline's own default.
        width: image width in pixels, a multiple of 8; None for the pipeline's own default.
        registry: the methods known; None for the built-in ones.

    Yields:
        :class:`Generate`, to be called with prompts and seeds.

    Raises:
        UnsupportedPipeline: (a ``TypeError``) for anything else than such a pipeline.
        InvalidParams: for unknown methods or parameters, values out of range, guidance or a size that a method
            cannot work with, or steps below 1.
        ValueError: when the scheduler repeats a timestep at this number of steps.
    """
    from pytest_diffaccel.models.schedulers import check_timesteps

    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidParams(f"steps={steps!r} must be a whole number of at least 1")
    check_class(pipeline)
    accelerator = (registry or default_registry()).for_params(params)
    check_call(pipeline, accelerator, params, steps=steps, guidance_scale=guidance_scale, height=height, width=width)
    check_timesteps(pipeline, steps)
    yield Generate(pipeline, accelerator, params, steps, guidance_scale, height, width)
