"""Which training examples spoke for a prediction: TracIn over a run's checkpoints, by Captum."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lit_nlp.data.base import TextDataModule
from lit_nlp.data.batching import plan_batches
from lit_nlp.errors import ConfigError, UserError, did_you_mean, known_name
from lit_nlp.explain.batch import pad_terms, weighted
from lit_nlp.explain.checkpoints import Checkpoint, read_run, weights_kept
from lit_nlp.modules.base import TransformerModule
from lit_nlp.modules.text_classification import TextClassificationModule, multi_label_losses, single_label_losses
from lit_nlp.targets import Label, Reading
from lit_nlp.tokenization import Text, Tokens, check_texts

T = TypeVar("T")

_COLUMNS = ("input_ids", "label", "length", "text", "text_pair", "where")
# How far a layer's outputs may lie from the logits that they are to be, as a share: bfloat16 rounds to 0.4 %.
_ROUNDING = 0.02


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


def influences(
    module: TransformerModule,
    checkpoints: Sequence[str | Path],
    train: datasets.Dataset,
    texts: Sequence[Text],
    labels: Sequence[Label] | None = None,
    *,
    data: TextDataModule | None = None,
    top: int = 5,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
) -> list[list[Influence]]:
    """Return the training examples that spoke most for what is said of each text, and against it.

    The score of an example is the sum over checkpoints of the learning rate times the product of two gradients: of
    the example's loss and of the text's (TracInCP; Pruthi et al. 2020, "Estimating Training Data Influence by
    Tracing Gradient Descent"). It follows plain gradient descent, and knows nothing of AdamW's moments, of
    `layer_decay` (the head's rate counts), of `class_weights`, `label_smoothing` and `focal_gamma`: the loss of a
    row is its cross-entropy, its mean binary cross-entropy or its squared error. Dropout is off. A text in windows
    is one row, with the mean of its windows' logits, as in training. Examples that the model gets wrong have large
    gradients, and so may stand beside many texts.

    For other tasks than classification, the text's loss is the negative scalar that an attribution of it would
    explain: of the answer's span, or of all tokens that are written; and an example's is its part in the training
    loss, label smoothing included.

    Args:
        module: The module; it is left as it was found.
        checkpoints: Of the run that trained it; of those of one step, as `best.ckpt` and `last.ckpt` may be, one
            counts. At the end of a schedule that falls to 0, the rate is 0 and a checkpoint counts nothing; where
            that is so of all, they count alike, with the module's `learning_rate`. Memory holds one at a time.
        train: A set-up data module's `tables["train"]`, or rows selected from it.
        texts: Texts, or pairs of texts.
        labels: What is to be accounted for: the class, the classes, or the score of each text. None: what the module
            says. Of a score that says little, since its error, and so its gradient, is 0 at the module's own weights.
        data: The data module that `train` is of, which makes batches of its rows: for other tasks than classification.
        top: At most this many proponents, and as many opponents, of each text.
        layers: The layers whose weights' gradients count, by the dotted names in `module`; memory holds these
            gradients of every text and of a batch. None: of a classifier the head alone, the last linear layer, which
            is far quicker; memory holds what it reads of every row. Of other modules the last linear layer, below the
            vocabulary's where there is one.
        batch_size: Rows that go through the module at once.

    Returns:
        For each text its proponents (score above 0), then its opponents (below 0), the strongest first.

    Raises:
        ConfigError: The module says nothing that could be accounted for, or arguments are out of range or don't go
            together.
        CheckpointError: There is none, or one can't be read or is of another module.
        UserError: The scores are not finite.
    """
    if not isinstance(module, TextClassificationModule):
        return _on_what_is_said(module, checkpoints, data, texts, top=top, layers=layers, batch_size=batch_size)
    _check(train, texts, labels, top=top, batch_size=batch_size)
    _check_labels(train, module)
    head = _head(module) if layers is None else None
    parameters = [] if layers is None else _parameters(module, layers)
    run = read_run(checkpoints, module)
    if not texts:
        return []
    given = labels if labels is not None else [said.label for said in module.predict_texts(texts, batch_size)]
    asked = _texts(module, texts, given, batch_size)
    rows = _table(module, train, batch_size)
    scores = torch.zeros(len(texts), len(train), dtype=torch.double)
    with module.attributing(), weights_kept(module):
        for checkpoint in run:
            checkpoint.load_into(module)
            if head is not None:
                part = _by_head(module, head, checkpoint, asked, rows)
            else:
                part = _by_layers(module, layers or [], parameters, checkpoint, asked, rows)
            scores[asked.order.unsqueeze(1), rows.order] += part.detach().cpu().double()
    _check_finite(scores)
    return [_strongest(module, train, row, top) for row in scores]


def _on_what_is_said(
    module: TransformerModule,
    checkpoints: Sequence[str | Path],
    data: TextDataModule | None,
    texts: Sequence[Text],
    *,
    top: int,
    layers: Sequence[str] | None,
    batch_size: int,
) -> list[list[Influence]]:
    """Return what `influences` does for any task, by what an attribution would explain."""
    check_texts(texts)
    if data is None or "train" not in data.tables:
        raise ConfigError("influence needs the training data", where="data", mend="give the data module, after setup()")
    names = [_last_linear(module)] if layers is None else list(layers)
    parameters, run = _parameters(module, names), read_run(checkpoints, module)
    targets = module.attribution_targets(texts, batch_size=batch_size)
    count = len(data.tables["train"])
    asked = [(each.row, reading) for each in targets for reading in each.readings]
    scores = torch.zeros(len(texts), count, dtype=torch.double)
    if not asked:
        return [[] for _ in texts]
    # Captum wants targets beside inputs; here the losses need none.
    said = [
        (_asked(module, [reading for _, reading in some]), torch.zeros(len(some)))
        for some in _chunks(asked, batch_size)
    ]
    rows = [
        (_to(data.batch_of("train", list(some)), module.device), torch.zeros(len(some)))
        for some in _chunks(range(count), batch_size)
    ]
    layer_names = [f"module.{name}" for name in names]
    with module.attributing(), weights_kept(module):
        for checkpoint in run:
            checkpoint.load_into(module)
            with _learning(parameters):
                method = TracInCP(_Losses(module), _loader(rows), [checkpoint], _learning_rate, layer_names, _Given())
                part = method.influence(_loader(said)).detach().cpu().double()
            scores.index_add_(0, torch.tensor([row for row, _ in asked]), part)
    _check_finite(scores)
    return [_told(data, row, top) for row in scores]


# Captum's two ways, each at one checkpoint whose weights the module has already: Captum would load them again for
# every batch.


def _by_head(
    module: TextClassificationModule, layer: nn.Linear, checkpoint: Checkpoint, asked: "_Rows", rows: "_Rows"
) -> Float[Tensor, "texts rows"]:
    """Return the products of the head's gradients, from what it reads of each row: Captum sees the head alone.

    `TracInCPFast` leaves a bias out; so it becomes a weight of a constant input. And it takes a sequence for a row
    and all its tokens for one; so windows, and the tokens that aren't pooled, are done away with before.
    """
    weight = _matrix(layer)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight)
    seen, read = (
        [(_read_by(layer, module, batch), target) for batch, target in _loader(each)] for each in (rows, asked)
    )
    inputs, targets = (torch.cat(each) for each in zip(*read, strict=True))
    method = TracInCPFast(head, head, _loader(seen), [checkpoint], _learning_rate, _Loss(module.problem_type, "sum"))
    return method.influence((inputs, targets))


def _by_layers(
    module: TextClassificationModule,
    layers: Sequence[str],
    parameters: list[nn.Parameter],
    checkpoint: Checkpoint,
    asked: "_Rows",
    rows: "_Rows",
) -> Float[Tensor, "texts rows"]:
    """Return the products of some layers' gradients, with one backward pass a row."""
    names, loss = [f"module.{name}" for name in layers], _Loss(module.problem_type, "none")
    with _learning(parameters):
        method = TracInCP(_Classifier(module), _loader(rows), [checkpoint], _learning_rate, names, loss)
        return method.influence(_loader(asked))


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


def _learning_rate(_: nn.Module, checkpoint: Checkpoint) -> float:
    return checkpoint.learning_rate


class _Losses(nn.Module):
    """What Captum calls for any task: a batch of training rows, or of what is asked, in; the loss of each out."""

    def __init__(self, module: TransformerModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, " rows"]:
        if "weights" not in batch:
            return self.module.row_losses(self.module.forward_batch(batch), batch)
        return -weighted(self.module.score, self.module(**batch["inputs"]), batch["weights"], batch["targets"])


class _Given(nn.Module):
    """The loss of outputs that are losses already."""

    reduction = "none"  # as Captum asks for it

    def forward(self, losses: Float[Tensor, " rows"], _: Tensor) -> Float[Tensor, " rows"]:
        return losses


class _Classifier(nn.Module):
    """What Captum calls: a batch in, the logits of its rows out."""

    def __init__(self, module: TextClassificationModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "rows classes"]:
        return self.module.forward_batch(batch)


class _Loss(nn.Module):
    """The loss of each row, or their sum, as the task has it without weights and smoothing."""

    def __init__(self, problem_type: str, reduction: str) -> None:
        super().__init__()
        self.problem_type, self.reduction = problem_type, reduction

    def forward(self, logits: Float[Tensor, "rows classes"], targets: Shaped[Tensor, "rows ..."]) -> Tensor:
        if self.problem_type == "regression":
            losses = F.mse_loss(logits, targets, reduction="none").mean(1)
        elif self.problem_type == "multi_label":
            losses = multi_label_losses(logits, targets, None, smoothing=0.0, gamma=0.0)
        else:
            losses = single_label_losses(logits, targets, None, smoothing=0.0, gamma=0.0)
        return losses.sum() if self.reduction == "sum" else losses


def _read_by(
    layer: nn.Linear, module: TextClassificationModule, batch: dict[str, Tensor]
) -> Float[Tensor, "rows features"]:
    """Return what the layer reads of each row, with a 1 for its bias, so that its weights times this are the logits.

    Raises:
        ConfigError: The logits are not what the layer makes of it.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def cut(_: nn.Module, read: tuple[Tensor, ...], written: Tensor) -> Tensor:
        calls.append((read[0].detach(), written.detach().requires_grad_()))
        return calls[-1][1]

    hook = layer.register_forward_hook(cut)
    try:
        logits = module(**module.inputs(batch))
    finally:
        hook.remove()
    if len(calls) == 1 and logits.requires_grad:
        read, written = calls[0]
        read = read.float() if layer.bias is None else F.pad(read.float(), (0, 1), value=1.0)
        # A decoder's head writes at every token, and the logits are those of one: the one that they move with.
        (moves,) = torch.autograd.grad(logits.sum(), written)
        pooled = moves[..., :1] * read
        pooled = pooled if pooled.ndim == 2 else pooled.sum(1)
        error = (pooled @ _matrix(layer).T - logits).abs().max()
        if not error > _ROUNDING * (logits.abs().max() + 1e-3):  # which holds too where neither is a number
            return module.pool(pooled.detach(), batch["row"])
    raise _no_head(module)


@dataclass(frozen=True)
class _Rows(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Rows in batches of like length: what the module takes, and their targets.

    Attributes:
        module: Which pads them.
        plan: The numbers of each batch's rows.
        read: Returns the windows of some rows, and their labels.
    """

    module: TextClassificationModule
    plan: list[list[int]]
    read: Callable[[list[int]], tuple[list[list[Tokens]], list[Any]]]

    @property
    def order(self) -> Tensor:
        """The rows as they come."""
        return torch.tensor(list(chain(*self.plan)))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, batch: int) -> tuple[dict[str, Tensor], Tensor]:
        rows = self.plan[batch]
        windows, labels = self.read(rows)
        numbers = [row for row, some in zip(rows, windows, strict=True) for _ in some]
        device = self.module.device
        padded = self.module.pad(list(chain(*windows)))
        return padded | {"row": torch.tensor(numbers, device=device)}, torch.tensor(labels, device=device)


def _table(module: TextClassificationModule, table: datasets.Dataset, batch_size: int) -> _Rows:
    names = [name for name in ("input_ids", "token_type_ids") if name in table.column_names]
    columns = table.select_columns([*names, "label"])

    def read(rows: list[int]) -> tuple[list[list[Tokens]], list[Any]]:
        some = columns[rows]
        each = zip(*(some[name] for name in names), strict=True)
        windows = [[dict(zip(names, window, strict=True)) for window in zip(*row, strict=True)] for row in each]
        return windows, some["label"]

    return _Rows(module, _plan(table["length"][:], batch_size), read)


def _texts(module: TextClassificationModule, texts: Sequence[Text], labels: Sequence[Label], batch_size: int) -> _Rows:
    encoded = module.encode(texts)
    windows: list[list[Tokens]] = [[] for _ in texts]
    for row, tokens in zip(encoded.row, encoded.sequences, strict=True):
        windows[row].append(tokens)
    targets = [_target(module, label) for label in labels]
    lengths = [sum(len(tokens["input_ids"]) for tokens in some) for some in windows]
    return _Rows(
        module, _plan(lengths, batch_size), lambda rows: ([windows[i] for i in rows], [targets[i] for i in rows])
    )


def _plan(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    return plan_batches(np.array(lengths, dtype=np.int64).reshape(-1, 1), batch_size=batch_size)


def _loader(batches: Any) -> DataLoader[Any]:
    # Its own generator: without one, it would draw from the global state.
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch, generator=torch.Generator())


def _target(module: TextClassificationModule, label: Label) -> int | list[float]:
    """Return a label as the loss takes it."""
    if module.problem_type == "regression":
        if not isinstance(label, int | float):
            raise ConfigError(f"expected a score, got {label!r}", where="labels")
        return [float(label)]
    names = [known_name(str(name), module.labels, "label") for name in (label if isinstance(label, list) else [label])]
    if module.problem_type == "multi_label":
        return [float(name in names) for name in module.labels]
    if len(names) != 1:
        raise ConfigError(f"expected one class, got {label!r}", where="labels")
    return module.labels.index(names[0])


def _strongest(
    module: TextClassificationModule, train: datasets.Dataset, scores: Float[Tensor, " rows"], top: int
) -> list[Influence]:
    """Return proponents, then opponents."""
    found: list[Influence] = []
    for row in _ranked(scores, top):
        example = train[row]
        label = module.label_of(torch.tensor(example["label"]))
        found.append(Influence(row, example["text"], example["text_pair"], label, float(scores[row]), example["where"]))
    return found


def _ranked(scores: Float[Tensor, " rows"], top: int) -> list[int]:
    """Return the rows with the highest scores above 0, then those with the lowest below; of equals, in their order."""
    found: list[int] = []
    for sign in (1, -1):
        strength, rows = (sign * scores).sort(descending=True, stable=True)
        found += rows[:top][strength[:top] > 0].tolist()
    return found


def _told(data: TextDataModule, scores: Float[Tensor, " rows"], top: int) -> list[Influence]:
    """Return proponents, then opponents, as the data module tells them."""
    numbers = _ranked(scores, top)
    if not numbers:
        return []
    drawn, places = data.rows("train", numbers), data.tables["train"][numbers]["where"]
    found = []
    for row, text, label, where in zip(numbers, drawn.texts, drawn.given or numbers, places, strict=True):
        first, second = text if isinstance(text, tuple) else (text, None)
        found.append(Influence(row, first, second, label, float(scores[row]), where))
    return found


def _asked(module: TransformerModule, readings: Sequence[Reading]) -> dict[str, Any]:
    """Return what is asked of some readings as a batch."""
    weights, targets = pad_terms(readings, module.device)
    return {"inputs": module.pad([each.inputs for each in readings]), "weights": weights, "targets": targets}


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in batch.items()}


# Layers


def _head(module: TextClassificationModule) -> nn.Linear:
    linear = [part for part in module.model.modules() if isinstance(part, nn.Linear)]
    if not linear or linear[-1].out_features != len(module.labels):
        raise _no_head(module)
    return linear[-1]


def _no_head(module: TextClassificationModule) -> ConfigError:
    return ConfigError(
        "the logits are not what the last linear layer makes of what it reads",
        where="layers",
        mend=f"name layers, such as {', '.join(_linear_layers(module)[-3:]) or 'the embeddings'}",
    )


def _matrix(layer: nn.Linear) -> Float[Tensor, "classes features"]:
    """Return a layer's weights, with its bias as the last column."""
    weight = layer.weight.detach().float()
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().float().unsqueeze(1)], 1)


def _last_linear(module: TransformerModule) -> str:
    """Return the name of the last linear layer that isn't the vocabulary's."""
    head = module.model.get_output_embeddings()
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and part is not head]
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
            such = f"name one with weights, such as {', '.join(_linear_layers(module)[-3:])}"
            raise ConfigError(
                f"the model has no layer {name!r}", where="layers", mend=did_you_mean(name, known) or such
            )
    parameters = [parameter for name in layers for parameter in known[name].parameters()]
    if len(set(parameters)) < len(parameters):
        raise ConfigError(f"some weights belong to two of {', '.join(layers)}", where="layers", mend="name each once")
    return parameters


def _linear_layers(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise UserError(
            "the gradients at these checkpoints are not finite numbers",
            mend="take checkpoints from before the weights diverged",
        )


def _check(train: datasets.Dataset, texts: Sequence[Text], labels: Sequence[Label] | None, **numbers: int) -> None:
    check_texts(texts)
    if labels is not None and len(labels) != len(texts):
        raise ConfigError(f"there are {len(texts)} texts but {len(labels)} labels", where="labels")
    if missing := [name for name in _COLUMNS if name not in train.column_names]:
        raise ConfigError(
            f"the table has no column {missing[0]}", where="train", mend='give data.tables["train"], after data.setup()'
        )
    if not len(train) or train[0]["label"] is None:
        raise ConfigError("the table has no rows with labels", where="train", mend="give the training rows")
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"expected a number above 0, got {number}", where=name)


def _check_labels(train: datasets.Dataset, module: TextClassificationModule) -> None:
    """Refuse a table whose labels can't be the module's."""
    labels, count, single = train["label"][:], len(module.labels), module.problem_type == "single_label"
    if isinstance(labels[0], list) == single or (max(labels) >= count if single else len(labels[0]) != count):
        raise ConfigError(
            f"the table's labels are not those of the module, {', '.join(module.labels)} ({module.problem_type})",
            where="train",
            mend="give the data that it was trained on",
        )
