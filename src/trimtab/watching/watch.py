"""Attach probes to a model: to a host by its sites, to any other module by the names of its parts."""

from __future__ import annotations

import itertools
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.host import AttentionPoint, Point
from trimtab.probe import (
    GradientNoiseProbe,
    LogitProbe,
    MatrixProbe,
    ModelProbe,
    Preset,
    TableProbe,
    TensorProbe,
    wide,
)
from trimtab.sink import Sink
from trimtab.watching import seam
from trimtab.watching.noise import NoiseMeter, ShardedError
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key, Weight
from trimtab.watching.publishing import refuse_empty, row_of
from trimtab.watching.tables import MatrixMeter, ModelMeter, TableMeter
from trimtab.watching.tensors import Reading, TensorMeter
from trimtab.watching.weights import WeightMeter

FAILURES_ALLOWED = 3
_NUMBERS = itertools.count()


class WatchError(RuntimeError):
    """Probes cannot do what is asked; nothing was changed."""


class Watch:
    """Probes attached to a model; made by ``watch``.

    Attributes:
        step: optimizer steps seen so far.
        last: the latest row; empty before the first.
        seconds: wall time of the readings so far by what was read, on the host: ``tensors``, ``weights``, ``tables``,
            ``matrices``, ``model``, ``noise``. What a device still works on is not in it.
    """

    def __init__(
        self,
        model: nn.Module,
        points: Sequence[tuple[Key, Point]],
        attentions: Sequence[AttentionPoint],
        weights: Sequence[Weight],
        matrices: Sequence[tuple[Key, Callable[[], Tensor]]],
        preset: Preset,
        *,
        optimizer: torch.optim.Optimizer | None,
        sinks: Sequence[Sink],
        run: str,
        group: dist.ProcessGroup | Literal["world"] | None,
    ) -> None:
        self.preset, self.step, self.last = preset, 0, dict[str, float]()
        self.seconds = defaultdict[str, float](float)
        self.every = preset.every
        self.traced = False
        self._model, self._optimizer = weakref.ref(model), optimizer
        if not any(isinstance(probe, TensorProbe | LogitProbe) for probe in preset.probes):
            points = ()  # nobody looks at what passes there
        self._points, self._attentions = tuple(points), tuple(attentions)
        self._sinks, self._group_choice = tuple(sinks), group
        self._number, self._token = next(_NUMBERS), torch.zeros(1)
        self._handles: list[Callable[[], None]] = []
        self._leaf_handles: list[Any] = []
        self._gradient_rows: set[int] = set()
        self._warned = False
        self._armed, self._in_forward, self._micro_batches, self._failures, self._broken = False, False, 0, 0, False
        forward = list(dict.fromkeys(key for key, _ in points))
        with_gradient = dict.fromkeys(key for key, point in points if point.gradient and preset.gradients)
        backward = [(f"{what}_grad", where) for what, where in with_gradient if what != "logits"]
        self._rows = {key: row for row, key in enumerate([*forward, *backward])}
        self._forward_places = {"/".join(key) for key in forward}
        self._pack = Pack()
        self._pack.add("broken", ())
        logits = ("logits", "model") if ("logits", "model") in forward else None
        self.tensors = TensorMeter([*forward, *backward], attentions, preset, self._pack, logits)
        self.weights = WeightMeter(model, weights, preset, self._pack, optimizer)
        embedding = next((w.key for w in weights if w.key[0].startswith("embedding")), None)
        noise = [probe for probe in preset.probes if isinstance(probe, GradientNoiseProbe)] if optimizer else []
        self.noise = NoiseMeter(model, embedding, self.weights.key_of, noise, self._pack)
        tables = [weight for weight in weights if weight.key[0] in ("embedding_weight", "head_weight")]
        self.tables = TableMeter(tables, [p for p in preset.probes if isinstance(p, TableProbe)], self._pack)
        self.matrices = MatrixMeter(matrices, [p for p in preset.probes if isinstance(p, MatrixProbe)], self._pack)
        self.whole = ModelMeter(model, [p for p in preset.probes if isinstance(p, ModelProbe)])
        self.noise.guarded = partial(self._guarded, "noise")
        seam.OBSERVERS[self._number] = self
        self._optimizer_handles: list[Any] = []
        self._arm()  # it may be refused: nothing else is touched before
        if optimizer is not None:
            self._optimizer_handles = [
                optimizer.register_step_pre_hook(self._entering_step),
                optimizer.register_step_post_hook(lambda *_: self._after_step()),
            ]
        if self._writes:
            try:
                for sink in self._sinks:
                    sink.open(run)
            except BaseException:
                self._sinks = ()
                self.remove("failed")
                raise

    @property
    def model(self) -> nn.Module:
        """The watched model."""
        model = self._model()
        assert model is not None, "the watched model is gone"
        return model

    @property
    def every(self) -> int:
        """Optimizer steps from one reading to the next.

        Raises:
            ValueError: if set below 1.
        """
        return self._every

    @every.setter
    def every(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"every must be at least 1, got {steps}")
        self._every = steps

    @property
    def due(self) -> bool:
        """Whether the coming step is read."""
        return self._armed

    def see_gradients(self) -> None:
        """Take the gradients' norms now: call it after backward and before clipping, to read them unclipped.

        Without it they are read as the optimizer receives them.
        """
        if self._armed and not self._broken:
            self._guarded("noise", self.noise.settle)
            self._guarded("weights", lambda: self.weights.read_gradients(self._group, alone=self._alone))

    def read(self) -> dict[str, float]:
        """End the present reading by hand, without an optimizer; returns its row.

        Raises:
            EmptyReadingError: if no tensor passed the hooks since the last reading.
        """
        if self._number not in seam.OBSERVERS:
            raise WatchError("this watch was removed; attach another")
        if self._broken:
            raise WatchError("probes were switched off after errors; see the warning, and attach another watch")
        if self._optimizer is not None:
            raise WatchError("this watch reads at every optimizer step by itself; its rows are in .last and the sinks")
        self.step += 1
        try:
            self._finish()
        finally:
            self._arm()
        return self.last

    def remove(self, status: Literal["finished", "failed"] = "finished") -> None:
        """Take every hook out and close the sinks; the model is as it was."""
        self._disarm(for_good=True)
        for handle in self._optimizer_handles:
            handle.remove()
        self._optimizer_handles = []
        if seam.OBSERVERS.pop(self._number, None) is not None and self._writes:
            for sink in self._sinks:
                sink.close(status)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.remove("finished" if kind is None else "failed")

    # What the hooks report.

    def enter(self, module: nn.Module | None, grad: bool) -> None:
        """A forward pass of the watched model begins; one without gradients is an evaluation and does not count."""
        copied = module is not None and module is not self._model()
        if copied:
            self._in_forward = False
            return
        self._gradient_rows.clear()
        self._in_forward = self._armed and (grad or self._optimizer is None)
        self._micro_batches += self._in_forward and grad

    def leave(self) -> None:
        """It ends. What runs later, in backward, is recomputation and not counted again."""
        self._in_forward = False

    def see(self, row: int, x: Tensor) -> None:
        """A tensor passes."""
        if self._in_forward and not self._broken:
            self._guarded("tensors", lambda: self.tensors.see(row, x))

    def see_gradient(self, row: int, x: Tensor) -> None:
        """A gradient passes."""
        if self._armed and not self._broken:
            self._guarded("tensors", lambda: self.tensors.see_gradient(row, x))

    def wants_gradient(self, row: int) -> bool:
        """Whether a tensor's gradient belongs to the pass: once, in forward or in a checkpoint's recomputation."""
        if self._in_forward:
            self._gradient_rows.add(row)
            return True
        # A reentrant checkpoint builds its graph only in backward; one that is not has built it in forward already.
        return self._armed and self._micro_batches > 0 and row not in self._gradient_rows

    def keep(self, handle: Any) -> None:
        """Take a hook on a leaf away when the reading ends."""
        self._leaf_handles.append(handle)

    def see_attention(self, index: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """Queries and keys pass."""
        if self._in_forward and not self._broken and self.tensors.of_heads:
            self._guarded("tensors", lambda: self.tensors.see_attention(index, q, k, mask, scale))

    # The turn of one optimizer step.

    def _entering_step(self, _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._before_step()
            return None

        def followed() -> Any:
            loss = closure()  # gradients are there only after it
            self._before_step()
            return loss

        return (args[:1], {**kwargs, "closure": followed})

    def _before_step(self) -> None:
        if self._armed and not self._broken:
            if not self.weights.gradients_read:
                self.see_gradients()
            if self.weights.steps is not None and not self.weights.idle:
                self._guarded("weights", self.weights.steps.before)

    def _after_step(self) -> None:
        self.step += 1
        try:
            if self._armed:
                self._finish()
        finally:
            if (self.step + 1) % self.every == 0:
                self._arm()
            elif self._armed:
                self._disarm()

    def _arm(self) -> None:
        like = next(self.model.parameters(), torch.zeros(0))
        self._device_type = like.device.type
        self._pack.clear(like.device, wide(like))
        self.tensors.forget()
        self._micro_batches, self.weights.gradients_read, self._in_forward = 0, False, False
        if not self._handles:
            self._handles = self._hook(self.model)
        self._release_leaves()
        try:
            self._leaf_handles = self.noise.attach()
        except ShardedError as error:
            self.noise.probes = ()
            warnings.warn(f"trimtab: {error}", stacklevel=2)
        self._armed = True

    def _hook(self, model: nn.Module) -> list[Callable[[], None]]:
        token, number = self._token, self._number
        removers: list[Callable[[], None]] = []
        if self.tensors.of_heads:
            try:
                for index, point in enumerate(self._attentions):
                    removers.append(point.watch(partial(seam.attention_hook, token, number, index)))
            except BaseException:
                for remove in removers:
                    remove()
                raise
        handles: list[Any] = [
            model.register_forward_pre_hook(partial(seam.entering, token, number)),
            model.register_forward_hook(partial(seam.leaving, token, number)),
        ]
        for (what, where), point in self._points:
            numbers = (token, number, self._rows[what, where], self._rows.get((f"{what}_grad", where), -1))
            if point.side == "input":
                hook = partial(seam.input_hook, *numbers)
                handles.append(point.module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(point.module.register_forward_hook(partial(seam.output_hook, *numbers)))
        return [*removers, *(handle.remove for handle in handles)]

    def _release_leaves(self) -> None:
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles = []

    def _disarm(self, *, for_good: bool = False) -> None:
        self._armed = False
        self._release_leaves()
        # In a compiled graph the hooks are part of the graph: taking them out would not, or would build a new one.
        if for_good or not self.traced:
            for remove in self._handles:
                remove()
            self._handles = []

    def _finish(self) -> None:
        group, alone = self._group, self._alone
        for what, read in (
            ("tensors", self.tensors.flush),
            ("weights", lambda: self.weights.read_weights(group, alone=alone)),
            ("weights", lambda: self.weights.read_step(group, alone=alone)),
            ("tables", lambda: self.tables.read(self._pack, group, alone=alone)),
            ("matrices", lambda: self.matrices.read(self._pack, group, alone=alone)),
        ):
            if not self._broken and not (what == "weights" and self.weights.idle):
                self._guarded(what, read)
        if not alone:
            self._pack["broken"].fill_(float(self._broken))
            self._pack.reduce(group)  # also of a broken watch: the other ranks wait for it
            self._broken = bool(self._pack["broken"] > 0)  # what one rank lacks would be missing from the row
        if self._broken:
            return
        world = 1 if alone else dist.get_world_size(group)
        merged = dict(zip(self.weights.keys, self._pack["gradients"][:, 0], strict=True)) if world > 1 else {}
        readings: list[Reading] = []
        for what, values in (
            ("tensors", self.tensors.values),
            ("weights", self.weights.values),
            ("tables", lambda: self.tables.values(self._pack)),
            ("matrices", lambda: self.matrices.values(self._pack)),
            ("model", self.whole.values),
            ("noise", lambda: self.noise.values(world, self._micro_batches, merged)),
        ):
            self._guarded(what, lambda values=values: readings.extend(values()))
        self._publish(readings)

    def _publish(self, readings: Sequence[Reading]) -> None:
        row, seen = row_of(self.step, readings, self.tensors.seen(), wide(self._pack["moments"]))
        passed = dict(zip(("/".join(key) for key in self.tensors.keys), seen, strict=True))
        empty = {place for place in self._forward_places if passed[place] == 0}
        noisy = bool(self.noise.probes)
        refuse_empty(self.step, empty, self._forward_places, passes=self._micro_batches, needs_passes=noisy)
        if empty and not self._warned:
            self._warned = True
            warnings.warn(f"trimtab: nothing passed {', '.join(sorted(empty)[:5])}: no reading of it", stacklevel=2)
        self.last = row
        self.matrices.restart(row)
        if self._writes:
            for sink in self._sinks:
                sink.log(self.step, row)

    def _guarded(self, what: str, action: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            # In the precision asked for, whatever the caller's autocast says.
            with torch.no_grad(), torch.autocast(self._device_type, enabled=False):
                action()
        except Exception as error:
            self._failures += 1
            if self._failures == FAILURES_ALLOWED:
                # Training matters more than its measurement.
                self._broken = True
                warnings.warn(
                    f"trimtab: probes are switched off after {FAILURES_ALLOWED} errors; the last was "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
        finally:
            self.seconds[what] += time.perf_counter() - started

    @property
    def _group(self) -> dist.ProcessGroup | None:
        return None if isinstance(self._group_choice, str) else self._group_choice

    @property
    def _alone(self) -> bool:
        if self._group_choice is None or not dist.is_available() or not dist.is_initialized():
            return True
        return dist.get_world_size(self._group) == 1

    @property
    def _writes(self) -> bool:
        return self._alone or dist.get_rank(self._group) == 0
