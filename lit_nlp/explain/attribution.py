"""A module and texts in, the words' scores out: all methods behind one call."""

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lit_nlp.errors import ConfigError, UserError, known_name
from lit_nlp.explain.batch import Batch, Features, Game
from lit_nlp.explain.explainable import Explainable
from lit_nlp.explain.faithfulness import Explanation
from lit_nlp.explain.methods import METHODS, Method, Settings
from lit_nlp.explain.words import Word
from lit_nlp.targets import AttributionTarget, Label
from lit_nlp.tokenization import Text, check_texts

_FIRST_STEPS = 16


@dataclass(frozen=True)
class Attribution:
    """What each word of one text contributed to the score of `target`.

    Attributes:
        text: The text as it came, and `text_pair` what stands beside it: a second text, the context of a question,
            or what the module wrote.
        label: The gold label, where it is known.
        prediction: What the module says of the text.
        probability: Of the prediction; of a token that is written, that token's; None for a number.
        probabilities: Of each class, candidate, or token that might stand there, the most probable first.
        target: What is explained: the class, the answer, the token; `A rather than B` for a contrast.
        method: The method's name.
        convergence_delta: The sum of the scores less the change that they are to explain (the score of the text
            less that of its baseline), in units of the score; None where the method's scores aren't to add up.
        converged: Whether the delta is as small as was asked for; None where there is none.
        words: The words of `text`, and `pair_words` those of `text_pair`.
        row: The number of the text among those that were given.
        kind: `class`, `span` or `token`.
        parts: What `text` and `text_pair` are called.
        span: The characters of `text_pair` that an answer or a token takes.
        special_score: What special tokens were credited with, which no word has.
    """

    text: str
    text_pair: str | None
    label: Label | None
    prediction: Label
    probability: float | None
    probabilities: dict[str, float]
    target: str
    method: str
    convergence_delta: float | None
    converged: bool | None
    words: list[Word]
    pair_words: list[Word]
    row: int = 0
    kind: str = "class"
    parts: tuple[str, str] = ("text", "text pair")
    span: tuple[int, int] | None = None
    special_score: float = 0.0


def attribute(
    module: Explainable,
    texts: Sequence[Text],
    *,
    method: str = "integrated_gradients",
    target: str | None = None,
    contrast: str | None = None,
    outputs: Sequence[str] | None = None,
    labels: Sequence[Label | None] | None = None,
    baseline: str = "pad",
    layer: str | None = None,
    head: int | None = None,
    tolerance: float = 0.01,
    max_steps: int = 512,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Attribution]:
    """Explain what the module says of each text, word by word.

    Args:
        module: A module of this package, or one that offers the same.
        texts: Texts, or pairs of texts: for question answering the question and its context.
        method: A name in `METHODS`.
        target: What to explain. None: for each text what the module says of it. A class; for question answering
            `answer`, `start`, `end` or `no answer`; for texts that are written the tokens of this name.
        contrast: What the target is to be told apart from, of the same kind: the difference is explained.
        outputs: For modules that write, what is taken as written. None: what the module writes.
        labels: The gold labels, to be shown beside the predictions.
        baseline: The special token that stands for a word that isn't there: `pad`, `mask` or `unk`.
        layer: Where `layer_integrated_gradients` and `attention` look: a module's dotted name.
        head: Which head `attention` shows, counted from 0. None: the mean over all.
        tolerance: The convergence delta that is accepted, as a share of the change to explain.
        max_steps: Where integrated gradients stop doubling the steps for texts that haven't converged.
        samples: Draws of the methods that sample. None: as many as give stable results.
        seed: What they draw by; a text's result doesn't depend on the texts beside it.
        batch_size: The sequences that go through the module at once; it bounds the memory.
        progress: Show a bar that counts what is finished.

    Returns:
        One attribution a text, in order; where texts are written, one a token.

    Raises:
        ConfigError: An unknown method or target, or a number of labels other than that of texts.
        UserError: The module's scores are not finite.
    """
    known_name(method, METHODS, "method")
    _check(texts, labels, tolerance=tolerance, max_steps=max_steps, batch_size=batch_size)
    if not texts:
        return []
    with module.attributing():
        targets = targets_of(module, texts, target=target, contrast=contrast, outputs=outputs, batch_size=batch_size)
        return credited(
            module,
            targets,
            method=method,
            labels=labels,
            baseline=baseline,
            layer=layer,
            head=head,
            tolerance=tolerance,
            max_steps=max_steps,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )


def targets_of(
    module: Explainable, texts: Sequence[Text], *, outputs: Sequence[str] | None = None, **asked: Any
) -> list[AttributionTarget]:
    """Return what is to be explained of texts; in `attributing()`.

    Raises:
        ConfigError: There are outputs for a module that writes nothing, or it knows no such target.
    """
    if outputs is None:
        return module.attribution_targets(texts, **asked)
    if "outputs" not in inspect.signature(module.attribution_targets).parameters:
        raise ConfigError(f"{type(module).__name__} writes nothing, so that there are no outputs", where="outputs")
    return module.attribution_targets(texts, outputs=outputs, **asked)


def credited(
    module: Explainable,
    targets: Sequence[AttributionTarget],
    *,
    method: str = "integrated_gradients",
    labels: Sequence[Label | None] | None = None,
    baseline: str = "pad",
    layer: str | None = None,
    head: int | None = None,
    tolerance: float = 0.01,
    max_steps: int = 512,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Attribution]:
    """Credit the words of targets, as `attribute` does; in `attributing()`."""
    known = METHODS[known_name(method, METHODS, "method")]
    if samples is not None and samples < 2:
        raise ConfigError(f"samples must be at least 2, got {samples}", where="samples")
    ledger = _Ledger(module, targets, module.absence_id(baseline), batch_size)
    settings = Settings(min(_FIRST_STEPS, max_steps), samples, layer, seed, head)
    with tqdm(total=len(targets), disable=not progress, desc=method.replace("_", " "), unit="target") as bar:
        for complete in ledger.fill(known, settings, tolerance, max_steps):
            bar.update(len(complete))
    return [
        Attribution(
            text=each.text,
            text_pair=each.text_pair,
            label=labels[each.row] if labels else None,
            prediction=each.prediction,
            probability=each.probability,
            probabilities=dict(each.probabilities),
            target=each.name,
            method=method,
            convergence_delta=ledger.delta(i) if known.complete else None,
            converged=ledger.is_complete(i, tolerance) if known.complete else None,
            words=ledger.words(i, part=0),
            pair_words=ledger.words(i, part=1),
            row=each.row,
            kind=each.kind,
            parts=each.parts,
            span=each.span,
            special_score=ledger.special(i),
        )
        for i, each in enumerate(targets)
    ]


def explanation(
    module: Explainable,
    target: AttributionTarget,
    *,
    method: str,
    baseline: str = "pad",
    layer: str | None = None,
    head: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[Explanation, tuple[Tensor, ...]]:
    """Return what scores a target's words for any embeddings, and its own embeddings, reading by reading.

    Integrated gradients take a fixed number of steps, so that the scores move with the embeddings alone.
    """
    features, known = Features.of(target), METHODS[method]
    batches = [
        Batch(module, [reading], [features], absence=module.absence_id(baseline), rows=batch_size)
        for reading in target.readings
    ]
    layers = len(batches[0].embedding_layers)

    def explain(given: tuple[Tensor, ...], call: int) -> Tensor:
        settings = Settings(2 * _FIRST_STEPS, samples, layer, seed + call, head)
        credit = torch.zeros(len(features), dtype=torch.double)
        with torch.enable_grad():
            for i, batch in enumerate(batches):
                moved = batch.at(given[i * layers : (i + 1) * layers])
                credit += known.credit(moved, settings)[0, : len(features)].cpu().double()
        return credit

    return explain, tuple(each for batch in batches for each in batch.embeddings)


def games(
    module: Explainable, targets: Iterable[AttributionTarget], *, baseline: str = "pad", batch_size: int = 16
) -> Iterator[Game]:
    """Yield what words do to each target as a game, in the order of its words; to be played in `attributing()`."""
    absence = module.absence_id(baseline)
    for target in targets:
        features = Features.of(target)
        yield Game([Batch(module, [each], [features], absence=absence, rows=batch_size) for each in target.readings])


class _Ledger:
    """The credit of every word, and the change of score that a target's credit should add up to.

    A text in windows has several readings: each is explained alone and counts with its weights.
    """

    def __init__(
        self, module: Explainable, targets: Sequence[AttributionTarget], absence: int, batch_size: int
    ) -> None:
        self._module, self._targets, self._absence, self._batch_size = module, targets, absence, batch_size
        self._features = [Features.of(target) for target in targets]
        self._credit = [torch.zeros(len(features) + 1, dtype=torch.double) for features in self._features]
        self._change = [0.0 for _ in targets]

    def fill(self, method: Method, settings: Settings, tolerance: float, max_steps: int) -> Iterable[set[int]]:
        """Credit all words, with as many steps as each target needs; yields which are finished."""
        waiting = set(range(len(self._targets)))
        while waiting:
            for i in waiting:
                self._credit[i].zero_()
                self._change[i] = 0.0
            for picked, batch in self._batches(waiting, max(1, self._batch_size // (2 if method.doubles else 1))):
                credits = method.credit(batch, settings).cpu().double()
                for i, change, credit in zip(picked, batch.change().tolist(), credits, strict=True):
                    words = len(self._features[i])
                    self._change[i] += change
                    self._credit[i][:words] += credit[:words]
                    self._credit[i][-1] += credit[-1]
            self._check_finite(waiting)
            last = not method.by_steps or settings.steps == max_steps
            complete = {i for i in waiting if last or self.is_complete(i, tolerance)}
            waiting -= complete
            settings = replace(settings, steps=min(2 * settings.steps, max_steps))
            yield complete

    def delta(self, target: int) -> float:
        """Return the sum of the target's credit less its change of score."""
        return math.fsum(self._credit[target].tolist()) - self._change[target]

    def is_complete(self, target: int, tolerance: float) -> bool:
        """Return whether the credit adds up."""
        return abs(self.delta(target)) <= tolerance * abs(self._change[target])

    def special(self, target: int) -> float:
        """Return the credit that is no word's."""
        return float(self._credit[target][-1])

    def words(self, target: int, *, part: int) -> list[Word]:
        """Return the words of the text (part 0) or of its pair (part 1) with their credit."""
        features = self._features[target]
        first = 0 if part == 0 else len(features.spans[0])
        scores = self._credit[target][first : first + len(features.spans[part])].tolist()
        text = features.texts[part]
        return [
            Word(text[start:end], start, end, score)
            for (start, end), score in zip(features.spans[part], scores, strict=True)
        ]

    def _check_finite(self, targets: set[int]) -> None:
        for i in targets:
            if not math.isfinite(self.delta(i)):
                raise UserError(
                    f"the model's score of text {self._targets[i].row} (counted from 0), or its gradient, is not a"
                    " finite number",
                    mend="train again: weights that have diverged can't be explained",
                )

    def _batches(self, targets: set[int], rows: int) -> Iterable[tuple[list[int], Batch]]:
        """Yield readings of like length, the longest first, so that memory runs out at once or never."""
        readings = [(i, reading) for i in sorted(targets) for reading in self._targets[i].readings]
        readings.sort(key=lambda item: [-len(ids) for ids in item[1].inputs.values()])
        for start in range(0, len(readings), rows):
            picked, some = zip(*readings[start : start + rows], strict=True)
            features = [self._features[i] for i in picked]
            yield (
                list(picked),
                Batch(self._module, some, features, absence=self._absence, rows=rows),
            )


def _check(texts: Sequence[Text], labels: Sequence[Label | None] | None, **numbers: int | float) -> None:
    check_texts(texts)
    if labels is not None and len(labels) != len(texts):
        raise ConfigError(f"there are {len(texts)} texts but {len(labels)} labels", where="labels")
    for name, number in numbers.items():
        if not number > 0:
            raise ConfigError(f"expected a number above 0, got {number}", where=name)
