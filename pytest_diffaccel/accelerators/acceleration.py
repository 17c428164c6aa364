"""``accelerate``: generate images with a pipeline and accelerator parameters, and leave the pipeline as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import Foresight, InvalidParams, Method
from pytest_diffaccel.accelerators.calls import (
    calls_per_step,
    check_call,
    check_class,
    check_params,
    guidance_options,
    is_guided,
    lessons_of,
    step_callback,
    text_length,
    weights_size,
)
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.counters import DENOISER_CALLS, FiredCounters
from pytest_diffaccel.accelerators.observer import Enough, FirstStepsOnly, Observer, OncePerStep, step_end_callback
from pytest_diffaccel.accelerators.outputs import OtherOutput, Outputs
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.accelerators.stack import SetUp
from pytest_diffaccel.matrix import Lesson, Params, format_params
from pytest_diffaccel.pipes import denoiser_of, families_of

if TYPE_CHECKING:
    from PIL.Image import Image


class MethodDidNotAct(RuntimeError):
    """A method was applied and changed nothing: its figures would be those of the unaccelerated pipeline."""


class StepCountError(RuntimeError):
    """The denoiser was not called once per step, nor twice where guidance is a second call."""


class UnknownCounter(ValueError):
    """A method names a counter that it does not count: whether it acts cannot be told."""


@dataclass
class Generate:
    """Generates batches with fixed settings; what ``accelerate`` gives.

    Attributes:
        pipeline: the diffusers pipeline.
        accelerator: the methods applied; none for the baseline.
        params: their parameters.
        steps: denoising steps.
        guidance_scale: None for the pipeline's own default.
        height: image height in pixels; None for the pipeline's own (:func:`.calls.own_size`).
        width: image width in pixels; None for the pipeline's own.
        watched: all methods whose counters are counted, applied or not.
        fired: what the methods did in the last counted generation, by counter.
        decided: the kinds of the steps of the last generation, where the pictures decide them.
        set_up: what torch compiled in its generations.
        on_set_up: told what it compiled in one.
    """

    pipeline: Any
    accelerator: Accelerator
    params: Params
    steps: int
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    watched: Sequence[Method] = ()
    fired: dict[str, int] = field(default_factory=dict)
    decided: tuple[str, ...] = ()
    set_up: SetUp = field(default_factory=SetUp)
    on_set_up: Callable[[SetUp], None] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each step, in order.

        Where the pictures decide, those of the last generation, as many as it made; before the first, as if each step
        after the first reused what it can.
        """
        return self.decided or self.accelerator.kinds(self.params, self.steps)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        """One image per prompt, in one batch.

        The first call checks that every method acts.

        Args:
            prompts: what to draw; the batch size is their number.
            seeds: one per prompt. The start noise of an image depends on its seed alone.

        Returns:
            PIL images in prompt order.

        Raises:
            ValueError: when there are not as many seeds as prompts, or none.
            MethodDidNotAct: when a method had no effect.
        """
        return self.observed(prompts, seeds, None) if self.fired else self.counted(prompts, seeds)

    def counted(
        self, prompts: Sequence[str], seeds: Sequence[int], *, made: Callable[[], None] | None = None
    ) -> list[Image]:
        """As a call, counting what the methods do (into :attr:`fired`), which takes a little longer.

        A method that counts nothing is proved by what the denoiser gives: a second generation, without the method, is
        ended as soon as it gives something else.

        Args:
            prompts: as for a call.
            seeds: as for a call.
            made: called when the images are there, before what comes second.

        Raises:
            MethodDidNotAct: when a method had no effect.
            StepCountError: when the denoiser was not called once per step.
            UnknownCounter: when a method names a counter that it does not count.
            UnwatchableError: when a method cannot put its hooks on the denoiser.
        """
        expected = self._expected_counters()
        # Without guidance no call is on half of a batch.
        runs = 2 if is_guided(self.pipeline, self.guidance_scale) else 1
        counters, outputs = FiredCounters(self.watched, full_batch=runs * len(prompts)), Outputs()
        unproved = [method for method in self.accelerator.methods if not method.counted]
        images = self._generate(prompts, seeds, None, [counters.attached, *([outputs.recorded] if unproved else ())])
        if made is not None:
            made()
        fired = counters.counts
        if silent := sorted(name for name in expected if not fired[name]):
            why = (
                "; the pictures decide what it reuses, and these let it reuse nothing"
                if self.accelerator.deciding
                else ""
            )
            raise MethodDidNotAct(f"{self._what} had no effect: {', '.join(silent)} stayed 0{why}")
        if fired[DENOISER_CALLS] not in {count * self.steps for count in calls_per_step(self.pipeline, runs)}:
            raise StepCountError(f"{fired[DENOISER_CALLS]} denoiser calls for {self.steps} steps")
        for method in unproved:
            self._prove(method, outputs, prompts, seeds)
        self.fired = fired
        return images

    def _expected_counters(self) -> frozenset[str]:
        """Those that must not stay 0, each its method's own: another's would show that the other one acts."""
        for method in self.accelerator.methods:
            named = method.counters(self.params[method.name], self.steps)
            if unknown := sorted(named - set(method.counted)):
                raise UnknownCounter(
                    f"{method.name} names {', '.join(unknown)} among its counters, which nothing counts for it, so "
                    f"that nobody can tell whether it acts; `counted` holds {', '.join(method.counted) or 'none'}"
                )
        return self.accelerator.counters(self.params, self.steps)

    @property
    def _what(self) -> str:
        return f"{self.accelerator.name} with {format_params(self.params)}"

    def _prove(self, method: Method, outputs: Outputs, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Generate without ``method`` until the denoiser gives something else than the ``outputs``."""
        params = {name: point for name, point in self.params.items() if name != method.name}
        without = replace(self, accelerator=self.accelerator.without(method), params=params)
        try:
            without._generate(prompts, seeds, None, [outputs.compared])
        except OtherOutput:
            return
        raise MethodDidNotAct(
            f"{self._what} had no effect: every call of the denoiser gave what it gives without {method.name}; where "
            f"that is meant, let {type(method).__name__} count what it saves (`counted` and `watch`)"
        )

    def observed(self, prompts: Sequence[str], seeds: Sequence[int], observer: Observer | None) -> list[Image]:
        """As a call, telling ``observer`` of its events; nothing is counted or checked."""
        return self._generate(prompts, seeds, observer)

    def begun(self, prompts: Sequence[str], seeds: Sequence[int], observer: Observer, steps: int) -> None:
        """As :meth:`observed`, but ended after its first ``steps`` steps: they are those of a whole generation.

        Args:
            prompts: what would be drawn.
            seeds: one per prompt.
            observer: is told of the end, too.
            steps: 1 to :attr:`steps`.
        """
        with suppress(Enough):
            self._generate(prompts, seeds, FirstStepsOnly(observer, steps))
        observer.ended()

    def foreseen(self, prompts: Sequence[str], seeds: Sequence[int]) -> Foresight:
        """What the method, which decides by the picture, would decide for these pictures with any parameters.

        Takes one generation in which nothing is reused.

        Args:
            prompts: as for a call.
            seeds: as for a call.
        """
        (method,) = self.accelerator.methods
        foresight = method.foresight()
        computing = replace(self, params={method.name: method.extremes[0]})
        computing._generate(prompts, seeds, None, [foresight.watching])
        return foresight

    def learn(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Lesson]:
        """What methods must know of this pipeline before they are applied, by method: ``accelerate``'s ``learnt``.

        It holds with this scheduler and this number of steps. Takes an unaccelerated generation for each method that
        applies here and learns; most learn nothing.

        Args:
            prompts: as for a call; what is learnt hardly depends on them.
            seeds: as for a call.

        Raises:
            ValueError: when what a method saw is nothing that it could use.
        """
        pipe = families_of(self.pipeline)[0]
        learning = [one for one in self.watched if one.learns(pipe) and not one.applies_to(self.pipeline)]
        return {method.name: self.learnt(method, prompts, seeds) for method in learning}

    def learnt(self, method: Method, prompts: Sequence[str], seeds: Sequence[int]) -> Lesson:
        """The same of one method, which applies here."""
        learning = method.learning()
        replace(self, accelerator=Accelerator(()), params={})._generate(prompts, seeds, None, [learning.watching])
        return learning.lesson(self.steps)

    def _generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        observer: Observer | None,
        watching: Sequence[Callable[[Any], AbstractContextManager[None]]] = (),
    ) -> list[Image]:
        import torch

        if len(prompts) != len(seeds) or not prompts:
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt, at least one")
        pipeline = self.pipeline
        devices = [pipeline.device] if pipeline.device.type == "cuda" else []
        # Methods are applied for each call anew: DeepCache's features and T-GATE's attention outputs would survive into
        # the next call, and ToMe's random generator, forked from the global one, would go on from where it was.
        # Without methods nothing touches the modules but hooks, which go by themselves, unless a `watch` breaks off.
        with (
            restored(pipeline, modules=bool(self.accelerator.methods or watching)),
            torch.random.fork_rng(devices),
            ExitStack() as stack,
        ):
            # Also of a run that is cut off, as those are of which only the first steps are timed.
            stack.callback(self._add_set_up, SetUp.so_far())
            torch.manual_seed(seeds[0])
            call = self.accelerator.apply(pipeline, pipeline.__call__, self.params)
            if deciding := self.accelerator.deciding:
                decisions = deciding.decisions(denoiser_of(pipeline))
                stack.callback(
                    lambda: setattr(self, "decided", self.accelerator.decided_kinds(self.params, decisions()))
                )
            options = self._options(prompts, seeds)
            for attached in watching:
                stack.enter_context(attached(pipeline))
            if observer:
                denoiser = denoiser_of(pipeline)
                steps = OncePerStep(observer)
                hook = denoiser.register_forward_pre_hook(lambda _module, _args: steps.denoiser_called())
                stack.callback(hook.remove)
                options[step_callback(pipeline)] = step_end_callback(steps)
                observer.started()
            images: list[Image] = call(**options).images
            if observer:
                observer.ended()
        return images

    def _add_set_up(self, before: SetUp) -> None:
        compiled = SetUp.so_far() - before
        self.set_up += compiled
        if compiled != SetUp() and self.on_set_up:
            self.on_set_up(compiled)

    def _options(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        import torch

        own_height, own_width = weights_size(self.pipeline) or (None, None)
        # Noise is drawn on the CPU: the same seed starts from the same latents on every device.
        options = {
            "prompt": list(prompts),
            "num_inference_steps": self.steps,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "height": self.height or own_height,
            "width": self.width or own_width,
            **guidance_options(self.pipeline, self.guidance_scale, len(prompts)),
            "max_sequence_length": text_length(self.pipeline),
        }
        return {name: value for name, value in options.items() if value is not None}


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
    learnt: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[Generate]:
    """Generate images with accelerator parameters.

    ``with accelerate(pipeline, params, steps=20) as generate: images = generate(prompts, seeds)``

    Methods are applied while a generation runs and undone after it; between and after, also after an exception, the
    pipeline is exactly as it was: its next plain call is bit-identical to one before. So several blocks on one
    pipeline may be open at once, and baseline and candidates can take turns.

    Args:
        pipeline: of the class of a pipe that is known (:mod:`pytest_diffaccel.pipes`), or of a subclass: a
            ``StableDiffusionPipeline``, ``StableDiffusionXLPipeline`` or ``FluxPipeline``.
        params: parameters by method, for example ``{"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}``;
            ``{}`` generates the baseline, the same way.
        steps: denoising steps, at least 1.
        guidance_scale: classifier-free guidance, or an input of the denoiser where it was trained for that, as
            FLUX.1's; None for the pipeline's own default. T-GATE needs more than 1.
        height: image height in pixels, a multiple of 8, or of 16 for FLUX.1; None for the pipeline's own default.
        width: image width in pixels, likewise.
        registry: the methods known; None for the built-in ones.
        learnt: by method, what it must know of the pipeline, as :meth:`Generate.learn` gives it with the same scheduler
            and steps: MagCache needs it on all pipelines but FLUX.1's.

    Yields:
        :class:`Generate`, to be called with prompts and seeds.

    Raises:
        UnsupportedPipeline: (a ``TypeError``) for anything else than such a pipeline.
        InvalidParams: for unknown methods or parameters, values out of range, guidance or a size that a method
            cannot work with, a method that has not learnt what it must, or steps below 1.
        ValueError: when the scheduler repeats a timestep at this number of steps.
    """
    from pytest_diffaccel.models.schedulers import check_timesteps

    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidParams(f"steps={steps!r} must be a whole number of at least 1")
    check_class(pipeline)
    check_params(params)
    known = (registry or default_registry()).taught(lessons_of(learnt or {}))
    accelerator = known.for_params(params)
    if caches := known.exclusive(accelerator):
        raise InvalidParams(f"{' and '.join(caches)}: a transformer takes one cache at a time; leave all but one out")
    check_call(pipeline, accelerator, params, steps=steps, guidance_scale=guidance_scale, height=height, width=width)
    check_timesteps(pipeline, steps)
    yield Generate(pipeline, accelerator, params, steps, guidance_scale, height, width, known.methods_for(pipeline))
