"""Which training examples spoke for a prediction: TracIn over a run's checkpoints, by Captum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import datasets
import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lit_nlp.data.base import TextDataModule
from lit_nlp.data.batching import Rows, plan_batches
from lit_nlp.errors import ConfigError, UserError, did_you_mean, require
from lit_nlp.explain.attribution import check_asked
from lit_nlp.explain.checkpoints import Checkpoint, read_run, weights_kept
from lit_nlp.modules.base import Batch, TransformerModule
from lit_nlp.modules.heads import linear_layers, weight_and_bias
from lit_nlp.targets import Label
from lit_nlp.tokenization import Text

# Returns the loss of each row of a batch.
Losses = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Influence:
    """One training example's part in one prediction.

    Attributes:
        row: Its number in the training table.
        text: Its text, and `text_pair` the second one of a pair.
        label: What the data says of it.
        score: By how much a step on it at each checkpoint lowers the text's loss (above 0) or raises it, to first
            order; in nats, of a regression in its squared units.
        where: Its file and line.
    """

    row: int
    text: str
    text_pair: str | None
    label: Label
    score: float
    where: str


@runtime_checkable
class Headed(Protocol):
    """A module whose logits are what a linear layer makes of one vector a row: the products are quick to come by."""

    def head(self) -> nn.Linear:
        """Return the layer."""

    def head_features(self, batch: Batch, /) -> Float[Tensor, "rows features"]:
        """Return what the layer reads of each row, with a 1 for its bias."""

    def own_losses(self, outputs: Tensor, batch: Batch, /) -> Float[Tensor, " rows"]:
        """Return the loss of each row from its logits and the batch's `labels`."""


def influences(
    module: TransformerModule,
    checkpoints: Sequence[str | Path],
    data: TextDataModule,
    texts: Sequence[Text],
    labels: Sequence[Label] | None = None,
    *,
    top: int = 5,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[list[Influence]]:
    """Return the training examples that spoke most for what is said of each text, and against it.

    The score of an example is the sum over checkpoints of the learning rate times the product of two gradients: of
    the example's loss and of the text's (TracInCP; Pruthi et al. 2020, "Estimating Training Data Influence by
    Tracing Gradient Descent"). It follows plain gradient descent, and knows nothing of AdamW's moments, of
    `layer_decay` (the head's rate counts), of `class_weights`, `label_smoothing` and `focal_gamma`: the loss of a
    row is the module's `own_losses`. So is that of a text with its label; of an answer, or of what is written, it is
    the negative log probability that an attribution would explain. Dropout is off. A text in windows is one row, as
    in training. Examples that the model gets wrong have large gradients, and so may stand beside many texts.

    Args:
        module: The module; it is left as it was found.
        checkpoints: Of the run that trained it; of those of one step, as `best.ckpt` and `last.ckpt` may be, one
            counts. At the end of a schedule that falls to 0, the rate is 0 and a checkpoint counts nothing; where
            that is so of all, they count alike, with the module's `learning_rate`. Memory holds one at a time.
        data: What the module was trained on, after `setup`: the rows of `tables["train"]` count, which may be some
            that were selected from it.
        texts: Texts, or pairs of texts.
        labels: What is to be accounted for: the class, the classes or the score of each text, or what is taken as
            written for it. None: what the module says. Of a score that says little, since its error, and so its
            gradient, is 0 at the module's own weights. Of questions, the given answer alone is accounted for.
        top: At most this many proponents, and as many opponents, of each text.
        layers: The layers whose weights' gradients count, by the dotted names in `module`; memory holds these
            gradients of every text and of a batch. None: of a classifier the head alone, the last linear layer, which
            is far quicker; of other modules the last linear layer, below the vocabulary's where there is one.
        batch_size: Rows that go through the module at once.
        progress: Show a bar that counts the training rows that are read, at each checkpoint.

    Returns:
        For each text its proponents (score above 0), then its opponents (below 0), the strongest first.

    Raises:
        ConfigError: The module says nothing that could be accounted for, or arguments are out of range or don't go
            together.
        CheckpointError: There is none, or one can't be read or is of another module.
        UserError: The scores are not finite.
    """
    check_asked(module, texts, labels=labels)
    for name, number in ("top", top), ("batch_size", batch_size):
        require(number >= 1, f"expected a number above 0, got {number}", name)
    _check_data(data, module)
    products = _products(module, layers)
    run = read_run(checkpoints, module)
    asked = [_to(batch, module.device) for batch in module.asked(texts, labels, batch_size=batch_size)] if texts else []
    if not asked:
        return [[] for _ in texts]
    train = data.tables["train"]
    plan = plan_batches(data.lengths(train), batch_size=batch_size)
    bar = tqdm(total=len(run) * len(train), disable=not progress, desc="influence", unit="row")
    rows = _Rows(train.select_columns(data.batch_columns("train")), data, plan, module.device, bar)
    order = torch.cat([torch.unique_consecutive(batch["row"]) for batch in asked]).cpu()
    scores = torch.zeros(len(texts), len(train), dtype=torch.double)
    with bar, module.attributing(), weights_kept(module):
        for checkpoint in run:
            checkpoint.load_into(module)
            scores[order.unsqueeze(1), rows.order] += products(checkpoint, asked, rows).detach().cpu().double()
    _check_finite(scores)
    return [_strongest(data, of_text, top) for of_text in scores]


@dataclass(frozen=True)
class _Rows(Dataset[dict[str, Any]]):
    """Training rows in batches of like length, each of which is made when it is asked for.

    Attributes:
        table: The columns that make batches: to select them for each batch anew takes longer than to read it.
        data: What makes batches of them.
        plan: The numbers of each batch's rows.
        device: Where batches are put.
        bar: Counts the rows.
    """

    table: datasets.Dataset
    data: TextDataModule
    plan: list[Rows]
    device: torch.device
    bar: "tqdm[Any]"

    @property
    def order(self) -> Int[Tensor, " rows"]:
        """The rows as they come."""
        return torch.from_numpy(np.concatenate(self.plan))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> dict[str, Any]:
        numbers = self.plan[batch].tolist()
        columns = {"row": numbers, **self.table[numbers]}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.bar.update(len(rows))
        return _to(self.data.collate(rows), self.device)


# Captum's two ways, each at one checkpoint whose weights the module has already: Captum would load them again for
# every batch.

# Returns the product of the gradients of each text and each row, times the learning rate.
Products = Callable[[Checkpoint, Sequence[Batch], _Rows], Float[Tensor, "texts rows"]]


def _products(module: TransformerModule, layers: Sequence[str] | None) -> Products:
    """Return what takes the products of some layers' gradients, or by default of the head's."""
    if layers is None and isinstance(module, Headed):
        return _ByHead(module)
    return _ByLayers(module, [_last_linear(module)] if layers is None else layers)


class _ByHead:
    """Products of the head's gradients, from what it reads of each row: Captum sees the head alone.

    `TracInCPFast` leaves a bias out; so it becomes a weight of a constant input. And it takes a sequence for a row
    and all its tokens for one; so windows, and the tokens that aren't pooled, are done away with before.
    """

    def __init__(self, module: Headed) -> None:
        self.module, self.layer = module, module.head()

    def __call__(self, checkpoint: Checkpoint, asked: Sequence[Batch], rows: _Rows) -> Float[Tensor, "texts rows"]:
        weight = weight_and_bias(self.layer)
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight = nn.Parameter(weight)
        inputs, labels = (torch.cat(each) for each in zip(*map(self._read, asked), strict=True))
        loss = _SummedLoss(self.module)
        method = TracInCPFast(head, head, _loader(rows, self._read), [checkpoint], _learning_rate, loss)
        return method.influence((inputs, labels))

    def _read(self, batch: Batch) -> tuple[Float[Tensor, "rows features"], Tensor]:
        return self.module.head_features(batch), batch["labels"]


class _ByLayers:
    """Products of some layers' gradients, with one backward pass a row."""

    def __init__(self, module: TransformerModule, layers: Sequence[str]) -> None:
        self.module, self.parameters = module, _parameters(module, layers)
        self.names = [f"module.{name}" for name in layers]

    def __call__(self, checkpoint: Checkpoint, asked: Sequence[Batch], rows: _Rows) -> Float[Tensor, "texts rows"]:
        # Captum takes the last of three for a target, which the losses don't need.
        of_rows = _loader(rows, lambda batch: (self._row_losses, batch, None))
        of_texts = _loader(asked, lambda batch: (self.module.asked_losses, batch, None))
        with _learning(self.parameters):
            method = TracInCP(_Called(self.module), of_rows, [checkpoint], _learning_rate, self.names)
            return method.influence(of_texts)

    def _row_losses(self, batch: Batch) -> Float[Tensor, " rows"]:
        return self.module.own_losses(self.module.forward_batch(batch), batch)


class _Called(nn.Module):
    """What Captum calls: losses and a batch in, the loss of each row out."""

    def __init__(self, module: TransformerModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, losses: Losses, batch: Batch) -> Float[Tensor, " rows"]:
        return losses(batch)


class _SummedLoss:
    """The loss of some rows together, from their logits and labels."""

    reduction = "sum"  # as Captum asks for it

    def __init__(self, module: Headed) -> None:
        self.module = module

    def __call__(self, logits: Float[Tensor, "rows classes"], labels: Tensor) -> Float[Tensor, ""]:
        return self.module.own_losses(logits, {"labels": labels}).sum()


def _learning_rate(_: nn.Module, checkpoint: Checkpoint) -> float:
    return checkpoint.learning_rate


def _loader(batches: Any, read: Callable[[Any], tuple[Any, ...]]) -> DataLoader[Any]:
    """Give Captum what is read of batches, one by one."""
    # Its own generator: without one, it would draw from the global state.
    return DataLoader(batches, batch_size=None, collate_fn=read, generator=torch.Generator())


def _to(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in batch.items()}


# Layers


@contextmanager
def _learning(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let some weights have gradients, all others being frozen."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _last_linear(module: TransformerModule) -> str:
    """Return the name of the last linear layer that isn't the vocabulary's."""
    head = module.model.get_output_embeddings()
    linear = [name for name in linear_layers(module) if module.get_submodule(name) is not head]
    if not linear:
        raise ConfigError("the model has no linear layer", where="layers", mend="name layers")
    return linear[-1]


def _parameters(module: TransformerModule, layers: Sequence[str]) -> list[nn.Parameter]:
    """Return the weights of layers, each once."""
    if isinstance(layers, str) or not layers:
        raise ConfigError(f"expected a list of layers, got {layers!r}", where="layers")
    known = {name: part for name, part in module.named_modules() if name and next(part.parameters(), None) is not None}
    for name in layers:
        if name not in known:
            such = f"name one with weights, such as {', '.join(linear_layers(module)[-3:])}"
            raise ConfigError(
                f"the model has no layer {name!r}", where="layers", mend=did_you_mean(name, known) or such
            )
    parameters = [parameter for name in layers for parameter in known[name].parameters()]
    if len(set(parameters)) < len(parameters):
        raise ConfigError(f"some weights belong to two of {', '.join(layers)}", where="layers", mend="name each once")
    return parameters


# What is told


def _strongest(data: TextDataModule, scores: Float[Tensor, " rows"], top: int) -> list[Influence]:
    """Return proponents, then opponents."""
    numbers = _ranked(scores, top)
    some = data.tables["train"][numbers]
    told = zip(numbers, data.texts_of(some), data.given_of(some) or [], some["where"], strict=True)
    found = []
    for row, text, label, where in told:
        first, second = text if isinstance(text, tuple) else (text, None)
        found.append(Influence(row, first, second, label, float(scores[row]), where))
    return found


def _ranked(scores: Float[Tensor, " rows"], top: int) -> list[int]:
    """Return the rows with the highest scores above 0, then those with the lowest below; of equals, in their order."""
    found: list[int] = []
    for sign in (1, -1):
        strength, rows = (sign * scores).sort(descending=True, stable=True)
        found += rows[:top][strength[:top] > 0].tolist()
    return found


# What is refused


def _check_data(data: TextDataModule, module: TransformerModule) -> None:
    if not isinstance(data, TextDataModule) or "train" not in data.tables:
        mend = 'give the data module, after setup("fit")'
        raise ConfigError("influence needs the training data", where="data", mend=mend)
    data.check_module(module)
    mend = "give the data that it was trained on"
    first = data.tables["train"][:1]
    if not (data.texts_of(first) and data.given_of(first)):
        raise ConfigError("there are no training rows with labels", where="data", mend=mend)


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise UserError(
            "the gradients at these checkpoints are not finite numbers",
            mend="take checkpoints from before the weights diverged",
        )
