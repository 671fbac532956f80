"""AdamW that updates of an embedding those rows alone that texts have held.

A row of which no gradient ever came has moments of 0, and AdamW does nothing to it but decay. Of a vocabulary of 30,000
a data set of sentences holds a third; of one for a hundred languages, where most parameters are rows, far less.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adamw import adamw
from transformers import PreTrainedModel


@contextmanager
def sparse_gradient(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's input embedding get a gradient of the batch's rows alone, in place of one of all."""
    embedding: Any = model.get_input_embeddings()
    before, embedding.sparse = embedding.sparse, True
    try:
        yield
    finally:
        embedding.sparse = before


def may_be_sparse(model: PreTrainedModel) -> bool:
    """Whether the model looks its tokens up in an embedding that learns, and that nothing else reads."""
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        return False
    if embedding.weight.dtype == torch.float16:  # whose sparse gradients torch doesn't add
        return False
    named = [name for name, each in model.named_parameters(remove_duplicate=False) if each is embedding.weight]
    return len(named) == 1 and embedding.max_norm is None and not embedding.scale_grad_by_freq


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW, without amsgrad, that also takes sparse gradients of a matrix's rows, and updates it by the fused kernel.

    The updates are those of dense gradients. The moments of rows that had a gradient stand together, in the order in
    which they were met; in `state_dict` they stand where `torch.optim.AdamW` has them, which can go on from there.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `torch.optim.AdamW` does."""
        packed = super().state_dict()
        for parameter, number in zip(_each(self.param_groups), _each(packed["param_groups"]), strict=True):
            state = packed["state"].get(number, {})
            if "rows" in state:
                packed["state"][number] = _spread(parameter, state)
        return packed

    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:
        # Where torch 2.13 collects the group's gradients once they are there, those are taken out that it would refuse:
        # a `step` of our own would run its hooks twice.
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and (gradient.is_sparse or "rows" in self.state[parameter]):
                self._update_rows(parameter, group)
                parameter.grad = None
        return super()._init_group(group, *lists)

    def _update_rows(self, parameter: Float[Tensor, "rows width"], group: dict[str, Any]) -> None:
        if group["amsgrad"]:
            raise ValueError("rows are updated without amsgrad")
        state = self.state[parameter]
        if "rows" not in state:
            state.update(_gathered(parameter, state))
        met, found = _rows_of(parameter.grad)  # type: ignore[arg-type]
        _meet(state, met)
        rows, (beta1, beta2) = state["rows"], group["betas"]
        gradient = found.new_zeros(len(rows), found.shape[1]).index_copy_(0, state["places"][met], found)
        weights, found_inf = parameter.index_select(0, rows), getattr(self, "found_inf", None)
        adamw(
            [weights],
            [gradient],
            [state["exp_avg"][: len(rows)]],
            [state["exp_avg_sq"][: len(rows)]],
            [],
            [state["step"]],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        # All rows decay; those that were met have done so by the kernel, and are put back.
        if decay := group["lr"] * group["weight_decay"]:
            parameter.mul_(1 - decay * (1 if found_inf is None else 1 - found_inf))
        parameter.index_copy_(0, rows, weights)


def _each(groups: list[dict[str, Any]]) -> Iterator[Any]:
    return (each for group in groups for each in group["params"])


def _rows_of(gradient: Tensor) -> tuple[Int[Tensor, " met"], Float[Tensor, "met width"]]:
    """Return the rows that a gradient is of, each once, and theirs."""
    if not gradient.is_sparse:
        return torch.arange(len(gradient)), gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _gathered(parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a parameter with the moments of its rows together, from that of dense gradients or none.

    Attributes of the state: `rows` has the numbers of those that were met, `places` the place of each row among them,
    or -1; of `exp_avg` and `exp_avg_sq` as much is written to, and takes memory, as there are rows met.
    """
    rows = torch.empty(0, dtype=torch.long)
    if state:
        rows = (state["exp_avg"].any(1) | state["exp_avg_sq"].any(1)).nonzero().squeeze(1)
    gathered = {
        "step": state.get("step", torch.zeros((), dtype=torch.float32)),
        "rows": rows,
        "places": torch.full((len(parameter),), -1).index_copy_(0, rows, torch.arange(len(rows))),
    }
    for name in ("exp_avg", "exp_avg_sq"):
        gathered[name] = torch.empty_like(parameter)
        if state:
            gathered[name][: len(rows)] = state[name][rows]
    return gathered


def _meet(state: dict[str, Tensor], met: Int[Tensor, " met"]) -> None:
    """Give rows that are met for the first time moments of 0."""
    new = met[state["places"][met] < 0]
    before = len(state["rows"])
    state["rows"] = torch.cat([state["rows"], new])
    state["places"][new] = torch.arange(before, len(state["rows"]))
    for name in ("exp_avg", "exp_avg_sq"):
        state[name][before : len(state["rows"])] = 0


def _spread(parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with the moments of each row where the row stands."""
    spread = {"step": state["step"]}
    for name in ("exp_avg", "exp_avg_sq"):
        spread[name] = torch.zeros_like(parameter).index_copy_(0, state["rows"], state[name][: len(state["rows"])])
    return spread
