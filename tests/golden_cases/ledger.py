"""What of a case has been compared, how near it was, and what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from golden_cases.case import Case

OUTPUTS, GRADIENTS = 1e-5, 1e-4
"""Bounds of |difference| / max(1, max|reference|)."""
NOISE = 1e-6
"""A gradient may be small as a whole: beyond this it must also be right relative to its own size."""
REFERENCES = ("output", "output_deploy", "output_deploy_full", "merged", "effective", "grad")


def distance(ours: Tensor, reference: Tensor) -> float:
    """max|difference| / max(1, max|reference|)"""
    return (ours - reference).abs().max().item() / max(1.0, reference.abs().max().item())


@dataclass
class Ledger:
    """Every reference of a case ends up compared or left out, or `close` fails."""

    case: Case
    near: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def references(self) -> set[str]:
        return {key for key in self.case.tensors if key.split("/")[0] in REFERENCES}

    def compare(self, key: str, ours: Tensor) -> None:
        """Hold one of our tensors against the reference of that name, with the bound of its group."""
        reference = self.case.tensors[key]
        ours = ours.detach()
        assert ours.shape == reference.shape, f"{key}: ours {list(ours.shape)}, reference {list(reference.shape)}"
        gradient = key.startswith("grad/")
        found, bound = distance(ours, reference), GRADIENTS if gradient else OUTPUTS
        assert found <= bound, f"{self.case.name} {key}: off by {found:.2e}, allowed {bound:.0e}"
        if gradient:
            off, size = (ours - reference).abs().max().item(), reference.abs().max().item()
            assert off <= max(NOISE, 1e-3 * size), (
                f"{self.case.name} {key}: off by {off:.2e} where the largest is {size:.2e}"
            )
        self.near[key] = max(found, self.near.get(key, 0.0))

    def outputs(self, found: dict[str, Tensor], group: str = "output") -> None:
        """Compare those of our outputs that the case has."""
        for name, ours in found.items():
            if f"{group}/{name}" in self.case.tensors:
                self.compare(f"{group}/{name}", ours)

    def attentions(self, found: tuple[Tensor, ...] | None) -> None:
        """Compare attention weights, where the implementation has any to show."""
        if self.case.attention == "eager":
            assert found
            self.outputs({f"attentions.{i}": weights for i, weights in enumerate(found)})
            return
        for key in self.case.tensors:
            if key.startswith("output/attentions."):
                self.leave_out(key, f"{self.case.attention} shows no attention weights")

    def gradients(self, leaves: dict[str, Tensor], group: str) -> None:
        """Compare the gradients of leaves of one group; a leaf that nothing reached has gradient 0."""
        for name, leaf in leaves.items():
            if f"grad/{group}/{name}" in self.case.tensors:
                self.compare(f"grad/{group}/{name}", leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad)

    def leave_out(self, key: str, reason: str) -> None:
        """Leave one reference out, by name."""
        if key in self.case.tensors:
            self.left_out[key] = reason

    def close(self) -> list[float]:
        """Nothing was skipped in silence, and every gradient of the adapter was compared.

        Returns the largest distance of the outputs and that of the gradients.
        """
        silent = self.references - set(self.near) - set(self.left_out)
        assert not silent, f"{self.case.name}: never compared: {sorted(silent)}"
        adapter = {key for key in self.references if key.startswith("grad/") and "adapter/" in key}
        assert adapter, f"{self.case.name} has no gradient of the adapter"
        assert adapter <= set(self.near)
        gradients = [distance for key, distance in self.near.items() if key.startswith("grad/")]
        outputs = [distance for key, distance in self.near.items() if not key.startswith("grad/")]
        return [max(outputs), max(gradients)]
