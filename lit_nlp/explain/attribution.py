"""A module and texts in, the words' scores out: the methods, all Captum's, behind one call."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from captum.attr import LayerIntegratedGradients
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lit_nlp.errors import ConfigError, UserError, did_you_mean
from lit_nlp.explain.batch import Batch
from lit_nlp.explain.explainable import Explainable, Label
from lit_nlp.explain.words import Word, words
from lit_nlp.tokenization import Encoded, Text, Tokens

_FIRST_STEPS = 16


@dataclass(frozen=True)
class Attribution:
    """What each word of one text contributed to the score of `target`.

    Attributes:
        text: The text as it came, and `text_pair` with it.
        label: The gold label, where it is known.
        prediction: What the module says, with its `probability` and the `probabilities` of all classes.
        target: The class that is explained.
        method: The method's name.
        convergence_delta: The sum of the words' scores less the change that they are to explain (the
            score of the text less that of its baseline), in units of the score.
        converged: Whether the delta is as small as was asked for.
        words: The words of `text`, and `pair_words` those of `text_pair`.
    """

    text: str
    text_pair: str | None
    label: Label | None
    prediction: Label
    probability: float | None
    probabilities: dict[str, float]
    target: str
    method: str
    convergence_delta: float
    converged: bool
    words: list[Word]
    pair_words: list[Word]


def integrated_gradients(batch: Batch, steps: int) -> Float[Tensor, "batch tokens"]:
    """Gradients of the score integrated along the line from the baseline's embeddings to the text's.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1, by Gauss-Legendre
    quadrature: the trapezoid rule is incomplete in Captum even on a linear model.
    """
    layers = batch.module.embedding_layers()
    with warnings.catch_warnings():  # several layers are fine: none reads another's output
        warnings.filterwarnings("ignore", "Multiple layers provided")
        method = LayerIntegratedGradients(batch.score, layers)
    per_layer = method.attribute(
        batch.input_ids,
        baselines=batch.baseline,
        additional_forward_args=batch.fixed,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=batch.rows,
    )
    per_token = map(batch.per_token, layers, (credit.sum(-1) for credit in per_layer))
    return torch.stack(list(per_token)).sum(0)


Method = Callable[[Batch, int], Float[Tensor, "batch tokens"]]

METHODS: dict[str, Method] = {"integrated_gradients": integrated_gradients}


def attribute(
    module: Explainable,
    texts: Sequence[Text],
    *,
    method: str = "integrated_gradients",
    target: str | None = None,
    labels: Sequence[Label | None] | None = None,
    tolerance: float = 0.01,
    max_steps: int = 512,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Attribution]:
    """Explain the module's score of one class for each text, word by word.

    Args:
        module: A module of this package, or one that offers the same.
        texts: Texts, or pairs of texts.
        method: A name in `METHODS`.
        target: The class to explain; None explains, for each text, the one that scores highest.
        labels: The gold labels, to be shown beside the predictions.
        tolerance: The convergence delta that is accepted, as a share of the change to explain.
        max_steps: Where to stop doubling the steps for texts that haven't converged.
        batch_size: The sequences that go through the module at once; it bounds the memory.
        progress: Show a bar that counts finished texts.

    Raises:
        ConfigError: An unknown method or target, or a number of labels other than that of texts.
        UserError: The module's scores are not finite.
    """
    explain = METHODS[_known(method, METHODS, "method")]
    names = module.targets()
    index = None if target is None else names.index(_known(target, names, "target"))
    _check(texts, labels, tolerance=tolerance, max_steps=max_steps, batch_size=batch_size)
    if not texts:
        return []
    with module.attributing():
        encoded = module.encode(texts)
        logits = _logits(module, encoded, batch_size)
        chosen = logits.argmax(-1) if index is None else torch.full_like(logits.argmax(-1), index)
        ledger = _Ledger(module, encoded, chosen, batch_size)
        with tqdm(total=len(texts), disable=not progress, desc="explaining", unit="text") as bar:
            unfinished = ledger.fill(explain, tolerance, max_steps, bar.update)
        predictions = module.predictions(logits, texts)
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    return [
        Attribution(
            text=text,
            text_pair=text_pair,
            label=labels[i] if labels else None,
            prediction=prediction.label,
            probability=prediction.probability,
            probabilities=dict(prediction.probabilities),
            target=names[int(chosen[i])],
            method=method,
            convergence_delta=ledger.delta(i),
            converged=i not in unfinished,
            words=ledger.words(i, text, part=0),
            pair_words=ledger.words(i, text_pair or "", part=1),
        )
        for i, ((text, text_pair), prediction) in enumerate(zip(pairs, predictions, strict=True))
    ]


class _Ledger:
    """The credit of every token, and the change of score that a text's credit should add up to.

    A text's score is the mean over its windows: each window is explained alone and counts for its share.
    """

    def __init__(self, module: Explainable, encoded: Encoded, target: Int[Tensor, " texts"], batch_size: int) -> None:
        self._module, self._encoded, self._target, self._batch_size = module, encoded, target, batch_size
        self._windows: list[list[int]] = [[] for _ in target]
        for window, text in enumerate(encoded.row):
            self._windows[text].append(window)
        self._share = [1 / len(self._windows[text]) for text in encoded.row]
        self._credit: list[list[float]] = [[] for _ in encoded.row]
        self._change = [0.0 for _ in encoded.row]

    def fill(self, method: Method, tolerance: float, max_steps: int, done: Callable[[int], object]) -> set[int]:
        """Explain each text with as many steps as it needs; return those that `max_steps` left incomplete."""
        open_texts = set(range(len(self._windows)))
        for picked, batch in self._batches(open_texts):
            for window, change in zip(picked, batch.change().tolist(), strict=True):
                self._change[window] = change * self._share[window]
        steps = min(_FIRST_STEPS, max_steps)
        while True:
            for picked, batch in self._batches(open_texts):
                for window, credit in zip(picked, method(batch, steps).double().cpu(), strict=True):
                    tokens = len(self._encoded.offsets[window])
                    self._credit[window] = (credit[:tokens] * self._share[window]).tolist()
            complete = {text for text in open_texts if self._is_complete(text, tolerance)}
            open_texts -= complete
            done(len(complete))
            if not open_texts or steps == max_steps:
                return open_texts
            steps = min(2 * steps, max_steps)

    def delta(self, text: int) -> float:
        """The sum of the text's credit less its change of score."""
        credit = math.fsum(score for window in self._windows[text] for score in self._credit[window])
        return credit - self._change_of(text)

    def words(self, text: int, characters: str, *, part: int) -> list[Word]:
        """The words of the text (part 0) or of its pair (part 1) with their credit."""
        tokens = [
            (span, score)
            for window in self._windows[text]
            for span, where, score in zip(
                self._encoded.offsets[window], self._encoded.part[window], self._credit[window], strict=True
            )
            if where == part
        ]
        return words(characters, [span for span, _ in tokens], [score for _, score in tokens])

    def _change_of(self, text: int) -> float:
        return math.fsum(self._change[window] for window in self._windows[text])

    def _is_complete(self, text: int, tolerance: float) -> bool:
        delta = self.delta(text)
        if not math.isfinite(delta):
            raise UserError(
                f"the model's score of text {text} (counted from 0), or its gradient, is not a finite number",
                mend="train again: weights that have diverged can't be explained",
            )
        return abs(delta) <= tolerance * abs(self._change_of(text))

    def _batches(self, texts: set[int]) -> Iterator[tuple[list[int], Batch]]:
        """The windows of some texts, batched, and the number of each."""
        windows = (window for text in texts for window in self._windows[text])
        for picked in _by_length(self._encoded, windows, self._batch_size):
            inputs = self._module.pad([self._encoded.sequences[window] for window in picked])
            baseline = self._module.pad([self._baseline(window) for window in picked])["input_ids"]
            target = self._target[[self._encoded.row[window] for window in picked]]
            yield picked, Batch(self._module, inputs, baseline, target, rows=self._batch_size)

    def _baseline(self, window: int) -> Tokens:
        """The window with nothing in place of each token that has characters to show credit on."""
        encoded, nothing = self._encoded, self._module.baseline_id
        tokens = zip(encoded.sequences[window]["input_ids"], encoded.offsets[window], encoded.part[window], strict=True)
        ids = [nothing if part >= 0 and start < end else token for token, (start, end), part in tokens]
        return {**encoded.sequences[window], "input_ids": ids}


@torch.no_grad()
def _logits(module: Explainable, encoded: Encoded, batch_size: int) -> Float[Tensor, "texts classes"]:
    everything = range(len(encoded.sequences))
    by_sequence: dict[int, Tensor] = {}
    for picked in _by_length(encoded, everything, batch_size):
        logits = module(**module.pad([encoded.sequences[i] for i in picked])).float()
        by_sequence |= zip(picked, logits, strict=True)
    logits = torch.stack([by_sequence[i] for i in everything])
    return module.pool(logits, torch.tensor(encoded.row, device=logits.device))


def _by_length(encoded: Encoded, sequences: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of sequences of like length, the longest first, so that memory runs out at once or never."""
    ordered = sorted(sequences, key=lambda i: (-len(encoded.sequences[i]["input_ids"]), i))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _known(name: str, names: Iterable[str], what: str) -> str:
    known = list(names)
    if name not in known:
        raise ConfigError(
            f"{what} {name!r} is not one of {', '.join(known)}", where=what, mend=did_you_mean(name, known)
        )
    return name


def _check(texts: Sequence[Text], labels: Sequence[Label | None] | None, **numbers: int | float) -> None:
    if isinstance(texts, str):
        raise ConfigError("expected a list of texts, got one text", where="texts", mend="write [text]")
    if labels is not None and len(labels) != len(texts):
        raise ConfigError(f"there are {len(texts)} texts but {len(labels)} labels", where="labels")
    for name, number in numbers.items():
        if not number > 0:
            raise ConfigError(f"expected a number above 0, got {number}", where=name)
