"""The linear layer that makes a classifier's logits: its weights, and what it reads of each sequence."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# How far a layer's outputs may lie from the logits that they are to be, as a share: bfloat16 rounds to 0.4 %.
_ROUNDING = 0.02


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32, whatever its weights and what it reads have been rounded to."""

    def forward(self, input: Float[Tensor, "... features"]) -> Float[Tensor, "... outputs"]:
        """Return the outputs in float32."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), bias)


def linear_layers(module: nn.Module) -> list[str]:
    """Return the dotted names of a module's linear layers, in their order."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def weight_and_bias(layer: nn.Linear) -> Float[Tensor, "classes features"]:
    """Return a layer's weights in float32, with its bias as the last column."""
    weight = layer.weight.detach().float()
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().float().unsqueeze(1)], 1)


def read_by(
    layer: nn.Linear, run: Callable[[], Float[Tensor, "sequences classes"]]
) -> Float[Tensor, "sequences features"] | None:
    """Return what a layer reads of each sequence, with a 1 for its bias; None where that doesn't make the logits.

    `weight_and_bias` times what is returned are the logits.

    Args:
        layer: The layer.
        run: Runs the model, differentiable to the outputs of its layers, and returns its logits.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def cut(_: nn.Module, read: tuple[Tensor, ...], written: Tensor) -> Tensor:
        calls.append((read[0].detach(), written.detach().requires_grad_()))
        return calls[-1][1]

    with layer.register_forward_hook(cut):
        logits = run()
    if len(calls) != 1 or not logits.requires_grad:
        return None
    read, written = calls[0]
    read = read.float() if layer.bias is None else F.pad(read.float(), (0, 1), value=1.0)
    # A decoder's head writes at every token, and the logits are those of one: the one that they move with.
    (moves,) = torch.autograd.grad(logits.sum(), written)
    pooled = moves[..., :1] * read
    pooled = pooled if pooled.ndim == 2 else pooled.sum(1)
    error = (pooled @ weight_and_bias(layer).T - logits).abs().max()
    # Where they are no numbers, this is false: that is told of the scores.
    return None if error > _ROUNDING * (logits.abs().max() + 1e-3) else pooled.detach()
