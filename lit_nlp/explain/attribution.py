"""A module and texts in, the words' scores out: all methods behind one call."""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from lit_nlp.errors import ConfigError, TargetError, UserError, require_list
from lit_nlp.explain.batch import Batch, Features, Game
from lit_nlp.explain.explainable import Explainable
from lit_nlp.explain.faithfulness import Explanation, random_scores
from lit_nlp.explain.methods import Method, methods_of
from lit_nlp.explain.options import Options
from lit_nlp.explain.words import Word
from lit_nlp.targets import AttributionTarget, Label
from lit_nlp.tokenization import Text, check_as_many, check_texts

# The target that stands for each that a module knows.
ALL = "all"


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
        converged: Whether the delta is as small as was asked for; None where there is none, or where it is small
            by construction and says nothing.
        words: The words of `text` that the model read, and `pair_words` those of `text_pair`: not those that are cut
            off, or that stand in another window than the answer. Beside a token, what was written is whole: words that
            come later have 0.
        row: The number of the text among those that were given.
        kind: `class`, `span` or `token`.
        parts: What `text` and `text_pair` are called.
        span: The characters of `text_pair` that an answer or a token takes.
        special_score: What special tokens were credited with, which no word has.
        faithfulness: How true it is of the model, by the names of `METRICS`; None where that wasn't measured.
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
    faithfulness: dict[str, float] | None = None

    def strongest(self, count: int) -> list[Word]:
        """Return the words of both texts with the highest scores, whatever their signs, the highest first."""
        return sorted(self.words + self.pair_words, key=lambda word: -abs(word.score))[:count]


def attribute(
    module: Explainable,
    texts: Sequence[Text],
    *,
    target: str | Sequence[str] | None = None,
    contrast: str | None = None,
    outputs: Sequence[Label] | None = None,
    labels: Sequence[Label | None] | None = None,
    **options: Any,
) -> list[Attribution]:
    """Explain what the module says of each text, word by word.

    Args:
        module: A module of this package, or one that offers the same.
        texts: Texts, or pairs of texts: for question answering the question and its context.
        target: What to explain. None: for each text what the module says of it. A class; for question answering
            `answer`, `start`, `end`, `no answer` or a text of the context; for texts that are written the tokens of
            this name. Or several of these; or `all`: each that the module knows, between which the readers of a
            report then switch.
        contrast: What the target is to be told apart from, of the same kind: the difference is explained.
            Also `runner-up`, the most probable of the others; of answers, of those that share no token with it.
        outputs: What is taken as said of each text: its class, the answer, or what is written. None: what the module
            says.
        labels: The gold labels, to be shown beside the predictions.
        options: Those of `Options`, such as `method`, `baseline`, `samples`, `seed` and `batch_size`.

    Returns:
        The attributions in the order of the texts: one a target; where texts are written, one a token.

    Raises:
        ConfigError: What was given is no module or no list of texts; an unknown method or target; an option that is
            out of range or without a use; or a number of labels other than that of texts.
        UserError: The module's scores are not finite.
    """
    chosen = Options.of(options)
    (known,) = methods_of([chosen.method], chosen)
    check_asked(module, texts, labels=labels, outputs=outputs)
    if not texts:
        return []
    with module.attributing():
        asked: dict[str, Any] = {"contrast": contrast, "outputs": outputs, "batch_size": chosen.batch_size}
        targets = targets_of(module, texts, target=target, **asked)
        return credited(module, targets, known, chosen, labels=labels)


def targets_of(
    module: Explainable,
    texts: Sequence[Text],
    *,
    target: str | Sequence[str] | None = None,
    contrast: str | None = None,
    **asked: Any,
) -> list[AttributionTarget]:
    """Return what is to be explained of texts, text by text; in `attributing()`.

    Args:
        module: The module.
        texts: The texts.
        target: As `attribute` takes it, and so `contrast`.
        contrast: What each target is to be told apart from.
        asked: More arguments of `attribution_targets`.

    Raises:
        ConfigError: The module knows no such target, or `all` came with a contrast.
        TargetError: None of the texts has it.
    """
    for name, given in {"target": target, "contrast": contrast}.items():
        if given is not None and not (given.strip() if isinstance(given, str) else given):
            raise ConfigError(f"the {name} is blank", where=name, mend="leave it out, or name one")
    if target is not None and not isinstance(target, str):
        require_list(target, "targets")
    pairs = [(each, contrast) for each in ([target] if target is None or isinstance(target, str) else target)]
    if target == ALL:
        if contrast is not None:
            raise ConfigError("all targets come with their own contrasts", where="contrast", mend="leave it out")
        pairs = module.target_choices()
    found: list[AttributionTarget] = []
    for one, other in pairs:
        try:
            found += module.attribution_targets(texts, target=one, contrast=other, **asked)
        except TargetError:  # as of a context of one word, which has no runner-up
            if target != ALL:
                raise
    if target == ALL:
        # Of two names for one thing, as no answer and a runner-up that is none, one is enough.
        found = list({(each.row, each.name, repr([r.terms for r in each.readings])): each for each in found}.values())
    if silent := len(texts) - len({each.row for each in found}):
        rank_zero_warn(f"{silent} of {len(texts)} texts are left out: they hold nothing of what is to be explained.")
    return sorted(found, key=lambda each: each.row)


def credited(
    module: Explainable,
    targets: Sequence[AttributionTarget],
    method: Method,
    options: Options,
    *,
    labels: Sequence[Label | None] | None = None,
) -> list[Attribution]:
    """Credit the words of targets, as `attribute` does; in `attributing()`.

    Args:
        module: The module.
        targets: What is explained.
        method: That of the options.
        options: How words are credited.
        labels: The gold label of each text.
    """
    ledger = _Ledger(module, targets, options)
    with tqdm(
        total=len(targets), disable=not options.progress, desc=options.method.replace("_", " "), unit="target"
    ) as bar:
        for _ in ledger.fill(method):
            bar.update()
    found = []
    for i, each in enumerate(targets):
        delta = None if method.adds_up == "not" else ledger.delta(i)
        found.append(
            Attribution(
                text=each.text,
                text_pair=each.text_pair,
                label=labels[each.row] if labels else None,
                prediction=each.prediction,
                probability=each.probability,
                probabilities=dict(each.probabilities),
                target=each.name,
                method=options.method,
                convergence_delta=delta,
                converged=ledger.is_complete(i) if method.adds_up in ("points", "principle") else None,
                words=ledger.words(i, part=0),
                pair_words=ledger.words(i, part=1),
                row=each.row,
                kind=each.kind,
                parts=each.parts,
                span=each.span,
                special_score=ledger.special(i),
            )
        )
    return found


def explanation(
    module: Explainable, target: AttributionTarget, method: Method, options: Options
) -> tuple[Explanation, tuple[Tensor, ...]]:
    """Return what scores a target's words for any embeddings, and its own embeddings, reading by reading.

    Args:
        module: The module; in `attributing()`.
        target: What is explained.
        method: That of the options.
        options: How words are credited.
    """
    features = Features.of(target)
    batches = list(_readings(module, target, options))
    layers = len(batches[0].embedding_layers)

    def explain(given: tuple[Tensor, ...], call: int) -> Tensor:
        if method.credit is None:
            return random_scores(len(features), options.seed + call)
        chosen = replace(options, seed=options.seed + call)
        credit = torch.zeros(len(features), dtype=torch.double)
        with torch.enable_grad():
            for i, batch in enumerate(batches):
                moved = batch.at(given[i * layers : (i + 1) * layers])
                found = method.credit(moved, chosen)
                of_words = found[0] if isinstance(found, tuple) else found
                credit[batch.read[0]] += of_words[0, :-1].cpu().double()
        return credit

    return explain, tuple(each for batch in batches for each in batch.embeddings)


def games(module: Explainable, targets: Iterable[AttributionTarget], options: Options) -> Iterator[Game]:
    """Yield what the words that are read do to each target as a game, to be played in `attributing()`."""
    for target in targets:
        yield Game(list(_readings(module, target, options)))


def _readings(module: Explainable, target: AttributionTarget, options: Options) -> Iterator[Batch]:
    """Yield a batch of one for each sequence in which a target is read."""
    features, absence = Features.of(target), module.absence_id(options.baseline)
    for each in target.readings:
        yield Batch(module, [each], [features], absence=absence, rows=options.batch_size)


def check_asked(module: Explainable, texts: Sequence[Text], **of_texts: Sequence[Any] | None) -> None:
    """Make sure that there is a module, and texts, and as many of each thing that goes with them.

    Raises:
        ConfigError: The module is none, there is one thing in place of a list, or there are more or fewer of something
            than texts.
    """
    if isinstance(module, type) or not isinstance(module, Explainable):
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        mend = "load one, as by SentimentModule.load_from_checkpoint(FILE)"
        raise ConfigError(f"expected a module of lit_nlp, got {got}", where="module", mend=mend)
    check_texts(texts)
    check_as_many(texts, **of_texts)


def by_row(attributions: Sequence[Attribution], rows: Sequence[int]) -> list[Attribution]:
    """Return attributions of texts under the numbers that these have as rows of a split.

    Raises:
        TargetError: There are none.
    """
    if not attributions:
        raise TargetError("nothing was said of these texts that could be explained", where="explain")
    return [replace(each, row=rows[each.row]) for each in attributions]


def asked_facts(target: str | Sequence[str] | None, contrast: str | None, *, default: str) -> dict[str, str]:
    """Return what a report's readers should know of what was asked.

    Args:
        target: As `attribute` takes it, and so `contrast`.
        contrast: What each target is told apart from.
        default: What is explained where no target is named.
    """
    named = target if isinstance(target, str) else ", ".join(target or [])
    told = "all that can be asked for" if target == ALL else named or default
    return {"Explained": told} | ({"Rather than": contrast} if contrast else {})


class _Ledger:
    """The credit of every word, and the change of score that a target's credit should add up to.

    A text in windows has several readings: each is explained alone and counts with its weights.
    """

    def __init__(self, module: Explainable, targets: Sequence[AttributionTarget], options: Options) -> None:
        self._module, self._targets, self._options = module, targets, options
        self._absence = module.absence_id(options.baseline)
        self._unknown_id = _unknown_id(module)
        self._features = [Features.of(target) for target in targets]
        self._read: list[set[int]] = [set() for _ in targets]
        self._credit = [torch.zeros(len(features) + 1, dtype=torch.double) for features in self._features]
        self._change = [0.0 for _ in targets]

    def fill(self, method: Method) -> Iterator[int]:
        """Credit all words; yields each target that is finished."""
        if method.credit is None:
            yield from self._drawn()
            return
        left = [len(target.readings) for target in self._targets]
        for picked, batch in self._batches(self._texts_at_once(method)):
            found = method.credit(batch, self._options)
            credits, changes = found if isinstance(found, tuple) else (found, None)
            if changes is None:
                changes = torch.zeros(len(picked)) if method.adds_up == "not" else batch.change()
            for i, read, credit, change in zip(
                picked, batch.read, credits.cpu().double(), changes.tolist(), strict=True
            ):
                self._read[i].update(read)
                self._credit[i][read] += credit[: len(read)]
                self._credit[i][-1] += credit[-1]
                self._change[i] += change
                left[i] -= 1
                if not left[i]:
                    self._check_finite(i)
                    yield i

    def _texts_at_once(self, method: Method) -> int:
        """Return how many readings a batch holds."""
        if method.together is None:
            return 1
        takes_rounds = method.adds_up == "points"
        if takes_rounds and self._targets:
            first = self._module.pad([self._targets[0].readings[0].inputs])
            if first["input_ids"].device.type != "cpu":
                # Later rounds, of one or two points a text, then fill a pass. A CPU is no faster for that, and with
                # few texts tells its progress sooner.
                return max(1, self._options.batch_size // 2)
        return max(1, self._options.batch_size // method.together)

    def delta(self, target: int) -> float:
        """Return the sum of the target's credit less its change of score."""
        return math.fsum(self._credit[target].tolist()) - self._change[target]

    def is_complete(self, target: int) -> bool:
        """Return whether the credit adds up."""
        return abs(self.delta(target)) <= self._options.tolerance * abs(self._change[target])

    def special(self, target: int) -> float:
        """Return the credit that is no word's."""
        return float(self._credit[target][-1])

    def words(self, target: int, *, part: Literal[0, 1]) -> list[Word]:
        """Return the words that are read of the text (part 0) or of its pair (part 1), with their credit.

        What was written, beside a token of it, is whole: its later words, not read yet, have 0.
        """
        features, text = self._features[target], self._features[target].texts[part]
        first = 0 if part == 0 else len(features.spans[0])
        numbers = range(first, first + len(features.spans[part]))
        whole = part == 1 and self._targets[target].kind == "token"
        readings = self._targets[target].readings
        unknown = {word for reading in readings for word in features.with_token(reading, self._unknown_id)}
        return [
            Word(text[start:end], start, end, float(self._credit[target][number]), number in unknown)
            for number, (start, end) in zip(numbers, features.spans[part], strict=True)
            if whole or number in self._read[target]
        ]

    def _drawn(self) -> Iterator[int]:
        """Draw the credit of the words that are read, by a seed of the target's own."""
        for i, target in enumerate(self._targets):
            own = repr((target.text, target.text_pair, target.name, target.span)).encode()
            drawn = random_scores(len(self._features[i]), zlib.crc32(own, self._options.seed & 0xFFFFFFFF))
            self._read[i].update(word for each in target.readings for word in self._features[i].read(each))
            read = sorted(self._read[i])
            self._credit[i][read] = drawn[read]
            yield i

    def _check_finite(self, target: int) -> None:
        if not math.isfinite(self.delta(target)):
            raise UserError(
                f"the model's score of text {self._targets[target].row} (counted from 0), or its gradient, is not a"
                " finite number",
                mend="train again: weights that have diverged can't be explained",
            )

    def _batches(self, rows: int) -> Iterator[tuple[list[int], Batch]]:
        """Yield readings of like length, the longest first, so that memory runs out at once or never."""
        readings = [(i, reading) for i, target in enumerate(self._targets) for reading in target.readings]
        readings.sort(key=lambda item: [-len(ids) for ids in item[1].inputs.values()])
        for start in range(0, len(readings), rows):
            picked, some = zip(*readings[start : start + rows], strict=True)
            features = [self._features[i] for i in picked]
            yield (
                list(picked),
                Batch(self._module, some, features, absence=self._absence, rows=self._options.batch_size),
            )


def _unknown_id(module: Explainable) -> int | None:
    """Return the token that stands for all that the tokenizer doesn't know; None where it has none."""
    try:
        return module.absence_id("unk")
    except ConfigError:
        return None
