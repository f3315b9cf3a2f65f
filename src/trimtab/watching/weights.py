"""What a reading takes around the optimizer step: norms of weights, gradients and updates, Adam's second moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.probe import NUM_SUMS, AdamProbe, Moments, Preset, TensorProbe, UpdateProbe, measure
from trimtab.watching.pack import Pack
from trimtab.watching.parameters import Key, Weight, local, plain, share, squares
from trimtab.watching.tensors import Reading, metric
from trimtab.watching.updates import StepMeter, has_moments


class WeightMeter:
    """Weights by role, gradients of every parameter, and the step that the optimizer makes of them."""

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[Weight],
        preset: Preset,
        pack: Pack,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.model, self.weights, self.preset, self.pack = model, tuple(weights), preset, pack
        self.statistics = [probe for probe in preset.probes if isinstance(probe, TensorProbe)]
        self.of_updates = [probe for probe in preset.probes if isinstance(probe, UpdateProbe)]
        adam = [probe for probe in preset.probes if isinstance(probe, AdamProbe)]
        self.of_adam = adam if optimizer is not None and has_moments(optimizer) else []
        self.steps = StepMeter(optimizer, self.of_adam, preset.rows) if optimizer is not None else None
        self.weight_keys = list(dict.fromkeys(weight.key for weight in self.weights))
        roles = {id(weight.stored): weight.key for weight in self.weights if weight.stored is not None}
        # By name: fully_shard puts other objects in place of the parameters.
        self.key_of = {
            plain(name): roles.get(id(p), ("parameter", plain(name))) for name, p in model.named_parameters()
        }
        self.keys = list(dict.fromkeys(self.key_of.values()))
        self.idle = not (self.statistics or self.of_updates or self.of_adam)
        deep = len(self.weight_keys) if preset.deep_weights else 0
        pack.add("weights", (len(self.weight_keys), 2))  # squares, entries
        pack.add("deep_weights", (deep, NUM_SUMS))
        pack.add("largest_weight", (deep,), "max")
        pack.add("gradients", (len(self.keys), 2))  # squares, entries
        pack.add("updates", (len(self.keys), 2 + len(self.of_adam) + 1))  # squares of both, Adam sums, entries
        self.gradients_read = False

    def read_gradients(self, group: dist.ProcessGroup | None, *, alone: bool) -> None:
        """Take the norms of the gradients as they are now; the average over several ranks is needed for their noise."""
        self.gradients_read = True
        if self.idle and alone:
            return
        found = [(self.key_of[name], p, p.grad) for name, p in self._parameters() if p.grad is not None]
        self.pack["gradients"].zero_()  # of an earlier closure, or of before see_gradients
        if found:
            norms = squares([local(gradient.detach()) for _, _, gradient in found])
            entries = norms.new_tensor([float(local(p.detach()).numel()) for _, p, _ in found])
            factors = [share(p, group, alone=alone) for _, p, _ in found]
            self._scatter("gradients", [key for key, _, _ in found], torch.stack((norms, entries), 1), factors)

    def read_weights(self, group: dist.ProcessGroup | None, *, alone: bool) -> None:
        """Take the norms, or all moments, of the weights."""
        if not self.weights:
            return
        keys, whole = [weight.key for weight in self.weights], [weight.effective() for weight in self.weights]
        shares, factors = [local(x) for x in whole], [share(x, group, alone=alone) for x in whole]
        if not self.preset.deep_weights:
            norms = squares(shares)
            entries = norms.new_tensor([float(x.numel()) for x in shares])
            self._scatter("weights", keys, torch.stack((norms, entries), 1), factors)
            return
        for key, x, factor in zip(keys, shares, factors, strict=True):
            row, found = self.weight_keys.index(key), measure(x)
            self.pack["deep_weights"][row] += found[:NUM_SUMS] * factor
            largest = self.pack["largest_weight"][row]
            largest.copy_(torch.maximum(largest, found[NUM_SUMS]))

    def read_step(self, group: dist.ProcessGroup | None, *, alone: bool) -> None:
        """Take what the optimizer step did; right after it."""
        moved = {} if self.steps is None else self.steps.after()
        found = [(self.key_of[name], p, moved[id(p)]) for name, p in self._parameters() if id(p) in moved]
        if found:
            entries = [sums.new_tensor([float(local(p.detach()).numel())]) for _, p, sums in found]
            rows = torch.stack([torch.cat((sums, n)) for (_, _, sums), n in zip(found, entries, strict=True)])
            factors = [share(p, group, alone=alone) for _, p, _ in found]
            self._scatter("updates", [key for key, _, _ in found], rows, factors)

    def values(self) -> list[Reading]:
        """Statistics by metric key."""
        found: list[Reading] = []
        if self.preset.deep_weights:
            moments = Moments.of(self.pack["deep_weights"], self.pack["largest_weight"])
            for probe in self.statistics:
                names = self._named(self.weight_keys, "", probe.slug)
                found.append(Reading(names, probe.value(moments), moments.entries))
        else:
            from_norm = [probe for probe in self.statistics if probe.from_norm]
            found += self._of_norms(self.weight_keys, self.pack["weights"], "", from_norm)
        sizes = [probe for probe in self.statistics if probe.slug == "l2_norm"]
        gradients, updates = self.pack["gradients"], self.pack["updates"]
        found += self._of_norms(self.keys, gradients, "_grad", sizes)
        found += self._of_norms(self.keys, updates[:, [0, -1]], "_update", sizes)
        for name, table in (("all_grad", gradients), ("all_update", updates)):
            total = torch.stack((table[:, 0].sum(), table[:, -1].sum()))[None]
            found += self._of_norms([(name, "model")], total, "", sizes)
        entries = updates[:, -1]
        for probe in self.of_updates:
            value = probe.value(updates[:, 0], updates[:, 1])
            found.append(Reading(self._named(self.keys, "", probe.slug), value, entries))
        for place, probe in enumerate(self.of_adam):
            total = updates[:, 2 + place]
            found.append(Reading(self._named(self.keys, "", probe.slug), probe.value(total / entries), entries))
        return found

    def _of_norms(
        self, keys: Sequence[Key], table: Tensor, suffix: str, probes: Sequence[TensorProbe]
    ) -> list[Reading]:
        square, count = table.unbind(1)
        none = torch.full_like(square, torch.nan)
        moments = Moments(count, count, none, none, square, none, none, none)
        return [Reading(self._named(keys, suffix, probe.slug), probe.value(moments), count) for probe in probes]

    @staticmethod
    def _named(keys: Sequence[Key], suffix: str, slug: str) -> list[str]:
        return [metric((f"{what}{suffix}", where), slug) for what, where in keys]

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(plain(name), p) for name, p in self.model.named_parameters() if plain(name) in self.key_of]

    def _scatter(self, region: str, keys: Sequence[Key], rows: Tensor, factors: Sequence[float]) -> None:
        place = self.pack[region]
        all_keys = self.weight_keys if region == "weights" else self.keys
        numbers = {key: row for row, key in enumerate(all_keys)}
        index = torch.tensor([numbers[key] for key in keys], device=place.device)
        scale = torch.tensor(factors, device=place.device, dtype=place.dtype)[:, None]
        # A select, not a product: another rank's NaN times 0 would still be NaN.
        place.index_add_(0, index, torch.where(scale == 0, 0.0, rows.to(place.dtype) * scale))
