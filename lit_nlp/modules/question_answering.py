"""Extractive question answering: the span of a context that answers a question, or that there is none."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Literal, NamedTuple, cast, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModel, AutoModelForQuestionAnswering, PreTrainedConfig

from lit_nlp.errors import ConfigError, TargetError, did_you_mean, require
from lit_nlp.files import json_lines
from lit_nlp.metrics.question_answering import SquadMetric, exact_match, f1
from lit_nlp.modules.base import Batch, EvaluationSplit, Files, TransformerModule, as_json
from lit_nlp.modules.spans import (
    ReadWindow,
    Span,
    Spot,
    bare_span,
    best_spans,
    find_spans,
    find_spots,
    in_one_window,
    no_answer_spots,
    runner_up,
)
from lit_nlp.targets import RUNNER_UP, AttributionTarget, Label, Place, Reading
from lit_nlp.tokenization import (
    WINDOW_LENGTH,
    Encoded,
    Text,
    by_length,
    check_as_many,
    check_texts,
    context_offsets,
    encode_windows,
    no_answer_positions,
)

_NO_ANSWER = "no answer"
_SIDES = ("start", "end")
_SPANS_A_CANDIDATE = 4
# How many windows a CPU reads at once, where nothing is learnt of them.
_WINDOWS_AT_ONCE = 8
# Candidates that an explanation shows.
_SHOWN = 5


# Not frozen: Lightning copies what predict_step returns field by field.
@dataclass
class Candidate:
    """One of the best spans of a context, or that there is no answer.

    Attributes:
        text: ``context[start:end]``; empty for no answer.
        start: The first character; None for no answer.
        end: The character behind the last.
        probability: Among the candidates: the softmax of the sums of their logits.
        start_logit: Of the first token, and `end_logit` of the last.
    """

    text: str
    start: int | None
    end: int | None
    probability: float
    start_logit: float
    end_logit: float


@dataclass
class Answer:
    """What the module answers to one question.

    Attributes:
        text: ``context[start:end]``; empty where the module says that there is no answer.
        start: The first character; None where there is no answer.
        end: The character behind the last.
        score: The answer's probability among the candidates.
        no_answer_score: The probability that there is none, among all candidates and that one.
        null_odds: The logits of no answer less those of the best span, in nats: above the module's
            `null_threshold`, no answer is given.
        candidates: The best spans, the most probable first; where questions may have none, that there is no
            answer among them.
        question: The question, and `context` what it was asked of.
        id: The question's name, and `row` its number in its split, where the data module told them.
    """

    text: str
    start: int | None
    end: int | None
    score: float
    no_answer_score: float
    null_odds: float
    candidates: list[Candidate]
    question: str
    context: str
    id: str | None = None
    row: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the answer without its context and its candidates."""
        return {name: value for name, value in as_json(self).items() if name not in ("candidates", "context")}


@dataclass
class Tested:
    """What a test found of one question.

    Attributes:
        prediction: What the module says.
        answers: What the data says.
        exact_match: 0 or 1, and `f1` between them.
        loss_nats: The mean over the context's windows.
    """

    prediction: Answer
    answers: list[str]
    exact_match: float
    f1: float
    loss_nats: float

    @property
    def row(self) -> int | None:
        """The row's number in its split."""
        return self.prediction.row

    def as_json(self) -> dict[str, Any]:
        """Return what is told of a wrong prediction."""
        told = {"answers": self.answers, "exact_match": self.exact_match, "f1": self.f1, "loss_nats": self.loss_nats}
        return self.prediction.as_json() | told | {"context": self.prediction.context}


@dataclass(frozen=True)
class Window:
    """What the model says of one window of a context.

    Attributes:
        spans: First character, character behind the last, start logit and end logit of its best spans.
        no_answer: The start logit and the end logit of no answer.
    """

    spans: list[tuple[int, int, float, float]]
    no_answer: tuple[float, float]


class _Asked(NamedTuple):
    """What is explained, or told apart: a spot, or its `start` or `end` alone."""

    spot: Spot
    side: str | None

    def told(self, context: str) -> str:
        """Return what it is called."""
        if self.spot.span is None:
            return _NO_ANSWER
        text = context[slice(*self.spot.span)]
        return f"the {self.side} of {text}" if self.side else text


class QuestionAnsweringModule(TransformerModule):
    """A pretrained transformer with two logits a token: that the answer starts there, and that it ends there.

    A context of any length is read in windows, each behind the whole question. In a window without the answer
    both logits are trained to point to the first token (BERT's `[CLS]`), which so stands for no answer (Devlin
    et al. 2019, section 4.3). A decoder's first token sees nothing else: its logits are a threshold, the same for
    all contexts, that an answer's must exceed.

    Args:
        doc_stride: The tokens by which the windows of a long context overlap, when the module tokenises
            texts by itself.
        max_answer_length: The most tokens of an answer.
        n_best: Candidates that are kept of a question.
        unanswerable: Whether questions may have no answer. Otherwise the best span is always given.
        null_threshold: Give no answer where the `null_odds` are above it. The best is the `best_f1_thresh` of
            a test under a very high one, such as 1000.
        max_length: Tokens of a window, when the module tokenises by itself. None: what the backbone reads, at
            most 384.
        kwargs: The arguments of `TransformerModule`.

    Raises:
        ConfigError: Arguments out of range.
    """

    task = "question_answering"

    runtime_arguments: ClassVar[set[str]] = TransformerModule.runtime_arguments | {
        "max_answer_length",
        "n_best",
        "null_threshold",
    }

    def __init__(
        self,
        backbone: str,
        *,
        doc_stride: int = 128,
        max_answer_length: int = 30,
        n_best: int = 20,
        unanswerable: bool = False,
        null_threshold: float = 0.0,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.unanswerable, self.null_threshold = unanswerable, null_threshold
        super().__init__(backbone, max_length=max_length, **kwargs)
        self.save_hyperparameters()
        require(doc_stride >= 0, f"doc_stride must be at least 0, got {doc_stride}", "model")
        require(max_answer_length >= 1, f"max_answer_length must be at least 1, got {max_answer_length}", "model")
        require(n_best >= 1, f"n_best must be at least 1, got {n_best}", "model")
        self.max_length = min(self.max_length, max_length or WINDOW_LENGTH)
        self.doc_stride, self.max_answer_length, self.n_best = doc_stride, max_answer_length, n_best

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class that gives each token a start and an end logit."""
        return _spans_class(config) or AutoModelForQuestionAnswering

    # Training

    def forward(self, **inputs: Int[Tensor, "windows tokens"]) -> Float[Tensor, "windows tokens 2"]:
        """Return each token's start and end logit: -inf for padding."""
        outputs = self.model(**inputs)
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=2)
        if "attention_mask" not in inputs:
            return logits
        return logits.masked_fill(inputs["attention_mask"].unsqueeze(2) == 0, -torch.inf)

    def forward_batch(self, batch: Batch) -> Float[Tensor, "windows tokens 2"]:
        """Return the logits of a batch, in float32.

        A CPU reads windows that nothing is learnt of in passes of a few of like length: it is as fast with few, and
        spared the padding of those that are shorter than others of their batch.
        """
        inputs = self.inputs(batch)
        if torch.is_grad_enabled() or self.device.type != "cpu" or "attention_mask" not in inputs:
            return self(**inputs).float()
        mask = inputs["attention_mask"]
        lengths = ((mask > 0) * torch.arange(1, mask.shape[1] + 1)).amax(1).tolist()
        logits = torch.full((*mask.shape, 2), -torch.inf, dtype=torch.float32)
        for some in by_length(lengths, _WINDOWS_AT_ONCE):
            width = lengths[some[0]]
            logits[some, :width] = self(**{name: each[some, :width] for name, each in inputs.items()}).float()
        return logits

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what of a batch the model's forward takes, without the positions, of which it would make a loss."""
        return {name: tensor for name, tensor in super().inputs(batch).items() if not name.endswith("_positions")}

    def row_losses(self, outputs: Float[Tensor, "windows tokens 2"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's loss in nats: over its windows, the sum of the mean of start's and end's."""
        return _summed(self._window_losses(outputs, batch, smoothing=self.label_smoothing), batch)

    def own_losses(self, outputs: Float[Tensor, "windows tokens 2"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's loss without smoothing."""
        return _summed(self._window_losses(outputs, batch, smoothing=0.0), batch)

    def loss_weight(self, batch: Batch) -> int:
        """Return the windows of the batch."""
        return len(batch["input_ids"])

    @property
    def differs_in_width_alone(self) -> bool:
        """False: rows have windows, now more and now less."""
        return False

    # Evaluation

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """F1, the higher the better."""
        return "val/f1", "max"

    def new_metrics(self) -> MetricCollection:
        """Return exact match and F1 by the official rules."""
        squad = SquadMetric(no_answers=self.unanswerable)
        return MetricCollection({"squad": squad}, compute_groups=False)

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Tested]:
        """Measure the answers to a batch's questions."""
        logits = self.forward_batch(batch)
        losses = self._window_losses(logits, batch, smoothing=0.0)
        self.log_loss(split, losses, len(losses))
        answers = self._answers(logits, batch)
        odds = [answer.null_odds for answer in answers]
        self.metrics_of(split).update([each.text for each in answers], odds, batch["answers"])
        _, sizes = _rows(batch)
        means = _summed(losses, batch) / sizes
        return list(map(self._tested, answers, batch["answers"], means.tolist()))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Answer]:
        """Return the answers to a batch's questions, with their ids and row numbers."""
        return self._answers(self.forward_batch(batch), batch)

    def evaluation_files(self, rows: Sequence[Tested]) -> Files:
        """Return the official files, and the answers that weren't exactly right, the lowest F1 and surest first."""
        wrong = json_lines(rows[i].as_json() for i in _most_wrong(rows))
        return official_files(lambda: (row.prediction for row in rows)) | {"wrong_predictions.jsonl": wrong}

    def predict_files(self, rows: Sequence[Answer]) -> Files:
        """Return the answers, a line each, and the official files."""
        return {"predictions.jsonl": json_lines(row.as_json() for row in rows)} | official_files(lambda: rows)

    # Answers

    @overload
    def answer(self, question: str, context: str, batch_size: int = 32) -> Answer: ...
    @overload
    def answer(self, question: list[str], context: str | list[str], batch_size: int = 32) -> list[Answer]: ...
    def answer(
        self, question: str | list[str], context: str | list[str], batch_size: int = 32
    ) -> Answer | list[Answer]:
        """Answer one question about a context; or several, each about its own or all about one.

        Args:
            question: A question, or a list of them.
            context: The text that may hold the answer, of any length; or a list of as many as questions.
            batch_size: Windows that are run at once.

        Raises:
            ConfigError: There are not as many contexts as questions.
            DataError: A question leaves no room for its context, or a text is blank.
        """
        if isinstance(question, str):
            if not isinstance(context, str):
                raise ConfigError("one question, but a list of contexts", mend="give a list of questions, too")
            return self.predict_texts([(question, context)], batch_size)[0]
        contexts = [context] * len(question) if isinstance(context, str) else context
        if len(contexts) != len(question):
            problem = f"{len(question)} questions, but {len(contexts)} contexts"
            raise ConfigError(problem, mend="give each question its context, or one to all")
        return self.predict_texts(list(zip(question, contexts, strict=True)), batch_size)

    def predict_texts(self, texts: Sequence[tuple[str, str]], batch_size: int = 32) -> list[Answer]:
        """Return the answers to questions, each with its context, in their order.

        Args:
            texts: Tuples of question and context.
            batch_size: Windows that are run at once.

        Raises:
            ConfigError: The texts are no pairs.
            DataError: A question leaves no room for its context, or a text is blank.
        """
        return self._read(texts, batch_size)[0]

    def _read(self, texts: Sequence[tuple[str, str]], batch_size: int) -> tuple[list[Answer], list[list[ReadWindow]]]:
        """Return the answers to questions, and the windows of each."""
        encoded = self.encode(texts)
        no_answer, offsets = no_answer_positions(self.tokenizer, encoded), context_offsets(encoded)
        said: dict[int, Window] = {}
        read: dict[int, ReadWindow] = {}
        with self.evaluating(), torch.inference_mode():
            for some in by_length(map(len, offsets), batch_size):
                logits = self(**self.pad([encoded.sequences[i] for i in some])).float()
                padded = [offsets[i] + [(-1, -1)] * (logits.shape[1] - len(offsets[i])) for i in some]
                characters = torch.tensor(padded, device=logits.device)
                nowhere = torch.tensor([no_answer[i] for i in some], device=logits.device)
                found = self._windows(logits, characters, characters[..., 0] < characters[..., 1], nowhere)
                for i, own, window in zip(some, logits.cpu(), found, strict=True):
                    tokens, part, spans = encoded.sequences[i], encoded.part[i], encoded.offsets[i]
                    said[i] = window
                    read[i] = ReadWindow(tokens, part, spans, offsets[i], no_answer[i], own[: len(offsets[i])])
        of_rows: list[list[int]] = [[] for _ in texts]
        for i, row in enumerate(encoded.row):
            of_rows[row].append(i)
        answers = [self._answer([said[i] for i in own], *text) for own, text in zip(of_rows, texts, strict=True)]
        return answers, [[read[i] for i in own] for own in of_rows]

    # Attribution

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Tokenise questions with their contexts in windows, as they were in training.

        Raises:
            ConfigError: The texts are no pairs.
            DataError: A question leaves no room for its context, or a text is blank.
        """
        check_texts(texts)
        pairs = [text for text in texts if isinstance(text, tuple)]
        if len(pairs) < len(texts):
            mend = "write [(question, context)]"
            raise ConfigError("expected pairs of a question and a context", where="texts", mend=mend)
        places = [f"question {i} (counted from 0)" for i in range(len(pairs))]
        return encode_windows(self.tokenizer, pairs, places, max_length=self.max_length, doc_stride=self.doc_stride)

    def targets(self) -> list[str]:
        """Return the names of what can be explained of any question."""
        return ["answer", "start", "end", _NO_ANSWER]

    def target_choices(self) -> list[tuple[str | None, str | None]]:
        """Return all of these, an answer rather than none, and what is said rather than what else might be."""
        return [*((name, None) for name in self.targets()), ("answer", _NO_ANSWER), (None, RUNNER_UP)]

    def score(
        self, outputs: Float[Tensor, "batch tokens 2"], target: Int[Tensor, "batch 2"]
    ) -> Float[Tensor, " batch"]:
        """Return log p(start) + log p(end) of a fixed span of tokens: that of the maximum would jump between spans.

        Of a start or end of -1, the other's log probability alone.
        """
        logs = outputs.float().log_softmax(1).gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        return logs.where(target >= 0, 0.0).sum(1)

    def attribution_targets(
        self,
        texts: Sequence[Text],
        *,
        target: str | None = None,
        contrast: str | None = None,
        outputs: Sequence[Label] | None = None,
        batch_size: int = 16,
    ) -> list[AttributionTarget]:
        """Return what speaks for the answer to each question, in the window that scores it highest.

        A text that stands several times in a context is looked at where it scores highest. A question whose context
        holds nothing of what is asked for has no target.

        Args:
            texts: Tuples of question and context.
            target: `answer`: the best span; its `start` or its `end` alone; `no answer`; or any other text of a
                context. None: what is answered.
            contrast: Another of these, or `runner-up`: the best span that has no token of the target's and isn't its
                text elsewhere; or `no answer`, where questions may have none and it's likelier. Its log probability is
                taken off, in a window that holds both: of an answer and `no answer`, what is left are the odds in that
                window; the module decides by the lowest of all.
            outputs: What is taken as the answer to each question: a text of its context, several of which the most
                probable counts, or nothing where there is no answer. None: what the module answers.
            batch_size: Windows that are run at once.

        Raises:
            ConfigError: There are more or fewer outputs than texts.
            TargetError: Nothing of what is asked for is found.
        """
        check_as_many(texts, outputs=outputs)
        if contrast is not None and target == contrast:
            raise ConfigError(f"{contrast!r} can't be told apart from itself", where="contrast", mend="name another")
        answers, windows = self._read(cast(Sequence[tuple[str, str]], texts), batch_size)
        given = outputs if outputs is not None else [None] * len(texts)
        asked = map(self._asked_of, answers, given, windows, repeat(target), repeat(contrast))
        found = [_target_of(row, answers[row], windows[row], each) for row, each in enumerate(asked) if each]
        if texts and not found:
            raise self._nothing_found(target, contrast, outputs, [answer.context for answer in answers])
        return found

    def asked(
        self, texts: Sequence[Text], labels: Sequence[Label] | None = None, *, batch_size: int = 16
    ) -> list[Batch]:
        """Return the span that answers each question, in the window that gave it.

        Raises:
            ConfigError: There are labels: the span itself is needed, and not its text.
        """
        if labels is not None:
            problem = "of a question, the answer that is given to it is accounted for, and no other"
            raise ConfigError(problem, where="labels", mend="leave them out")
        readings = [each.readings[0] for each in self.attribution_targets(texts, batch_size=batch_size)]
        return [
            {**self.pad([readings[i].inputs for i in some]), "row": torch.tensor(some)}
            | {"span": torch.tensor([readings[i].terms[0][1] for i in some], device=self.device)}
            for some in by_length([len(reading.inputs["input_ids"]) for reading in readings], batch_size)
        ]

    def asked_losses(self, batch: Batch) -> Float[Tensor, " texts"]:
        """Return the negative log probability of each span: start's and end's loss together, and not their mean."""
        return -self.score(self.forward_batch(batch), batch["span"])

    def most_wrong(self, texts: Sequence[Text], labels: Sequence[Label]) -> list[int]:
        """Return the questions with answers that aren't exactly right, the lowest F1 and surest first."""
        answers = self.predict_texts(cast(Sequence[tuple[str, str]], texts))
        given = cast(Sequence[list[str]], labels)
        return _most_wrong([self._tested(*each, loss=math.nan) for each in zip(answers, given, strict=True)])

    def _asked_of(
        self,
        answer: Answer,
        given: Label | None,
        windows: Sequence[ReadWindow],
        target: str | None,
        contrast: str | None,
    ) -> list[_Asked]:
        """Return what is explained of one question, and what it is told apart from; none where no window holds both."""
        context, said = answer.context, _best_span(answer)
        answers, nothing = (said, answer.start is None) if given is None else _given_spans(given, context)
        chosen = target or _beside(contrast) or (_NO_ANSWER if nothing else "answer")

        def spots(name: str) -> list[Spot]:
            if name == _NO_ANSWER:
                return no_answer_spots(windows)
            return find_spots(windows, answers if name in self.targets() else find_spans(name, context))

        named = [spots(chosen)] + ([] if contrast in (None, RUNNER_UP) else [spots(contrast)])
        own, other = in_one_window(windows, named, find_spots(windows, answers or said))
        if own is None:
            return []
        side = next((name for name in (chosen, contrast) if name in _SIDES), None)
        if contrast is None:
            return [_Asked(own, side)]
        if contrast == RUNNER_UP:
            length = self.max_answer_length
            other = runner_up(windows, own, context, max_answer_length=length, unanswerable=self.unanswerable)
        other_side = contrast if contrast in _SIDES else side
        if other is None or other.tokens(other_side) == own.tokens(side):
            return []
        return [_Asked(own, side), _Asked(other, other_side)]

    def _nothing_found(
        self, target: str | None, contrast: str | None, outputs: Sequence[Label] | None, contexts: Sequence[str]
    ) -> TargetError:
        names = {"target": self.targets(), "contrast": [*self.targets(), RUNNER_UP]}
        for (where, known), name in zip(names.items(), (target, contrast), strict=True):
            if name is not None and name not in known and not any(find_spans(name, context) for context in contexts):
                problem = f"{name!r} is not one of {', '.join(known)}, and stands in no context"
                return TargetError(problem, where=where, mend=did_you_mean(name, known))
        missing = outputs is not None and not any(
            any(_given_spans(*each)) for each in zip(outputs, contexts, strict=True)
        )
        if missing:
            mend = "give a text of each context, or '' where there is no answer"
            return TargetError("no context holds what is given as the answer", where="outputs", mend=mend)
        if contrast is not None:
            problem = f"nothing can be told apart from {contrast!r}: it is what is explained, or no window holds both"
            return TargetError(problem, where="contrast", mend="name another text of the context")
        mend = f"leave the target out, or name {_NO_ANSWER!r}"
        return TargetError("there is no answer to explain", where="target", mend=mend)

    def _tested(self, answer: Answer, given: list[str], loss: float) -> Tested:
        exact, overlap = (rule(answer.text, given, no_answers=self.unanswerable) for rule in (exact_match, f1))
        return Tested(answer, given, exact, overlap, loss)

    def _window_losses(
        self, logits: Float[Tensor, "windows tokens 2"], batch: Batch, *, smoothing: float
    ) -> Float[Tensor, " windows"]:
        target = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
        return span_losses(logits, target, smoothing=smoothing)

    def _answers(self, logits: Float[Tensor, "windows tokens 2"], batch: Batch) -> list[Answer]:
        windows = self._windows(logits, batch["offsets"], batch["context_mask"], batch["no_answer_position"])
        _, sizes = _rows(batch)
        rows = torch.unique_consecutive(batch["row"]).tolist()
        answers, first = [], 0
        for i, size in enumerate(sizes.tolist()):
            answer = self._answer(windows[first : first + size], batch["question"][i], batch["context"][i])
            answer.id, answer.row = batch["id"][i], rows[i]
            answers.append(answer)
            first += size
        return answers

    def _windows(
        self,
        logits: Float[Tensor, "windows tokens 2"],
        offsets: Int[Tensor, "windows tokens 2"],
        context_mask: Bool[Tensor, "windows tokens"],
        no_answer_position: Int[Tensor, " windows"],
    ) -> list[Window]:
        """Return what the logits of windows say, in characters."""
        self.check_numbers(logits)
        # Several spans of tokens may be one of characters: a byte-level tokenizer cuts within letters.
        several = _SPANS_A_CANDIDATE * self.n_best
        tokens = best_spans(logits, context_mask, max_answer_length=self.max_answer_length, n_best=several)
        sides = tokens.unbind(2)
        figures = torch.stack([logits[..., side].gather(1, sides[side]) for side in (0, 1)], dim=2).tolist()
        characters = torch.stack([offsets[..., side].gather(1, sides[side]) for side in (0, 1)], dim=2).tolist()
        real = torch.stack([context_mask.gather(1, side) for side in sides]).all(0)
        nowhere = logits[torch.arange(len(logits), device=logits.device), no_answer_position].tolist()
        return [
            Window(
                [(*span, *pair) for span, pair, kept in zip(*own, strict=True) if kept],
                (at[0], at[1]),
            )
            for *own, at in zip(characters, figures, real.tolist(), nowhere, strict=True)
        ]

    def _answer(self, windows: list[Window], question: str, context: str) -> Answer:
        """Return the answer that the windows of a context lead to."""
        spans: dict[tuple[int, int], tuple[float, float]] = {}
        for window in windows:
            for start, end, *logits in window.spans:
                span = bare_span(context, start, end)
                if span[0] < span[1] and sum(logits) > sum(spans.get(span, (-torch.inf,))):
                    spans[span] = (logits[0], logits[1])
        best = sorted(spans.items(), key=lambda item: -sum(item[1]))[: self.n_best]
        # The official scripts put a span with logits of 0 where there is none.
        best_score = sum(best[0][1]) if best else 0.0
        no_answer = min((window.no_answer for window in windows), key=sum)
        scores = torch.tensor([sum(no_answer), *(sum(logits) for _, logits in best)], dtype=torch.double)
        with_none = scores.softmax(0).tolist()
        probabilities = with_none[1:] if self.unanswerable else scores[1:].softmax(0).tolist()
        candidates = [
            Candidate(context[start:end], start, end, probability, *logits)
            for ((start, end), logits), probability in zip(best, probabilities, strict=True)
        ]
        if self.unanswerable or not candidates:
            candidates.append(Candidate("", None, None, with_none[0], *no_answer))
            candidates.sort(key=lambda each: -each.probability)
        null_odds = sum(no_answer) - best_score
        silent = not best or (self.unanswerable and null_odds > self.null_threshold)
        chosen = next(each for each in candidates if (each.start is None) == silent)
        return Answer(
            text=chosen.text,
            start=chosen.start,
            end=chosen.end,
            score=chosen.probability,
            no_answer_score=with_none[0],
            null_odds=null_odds,
            candidates=candidates,
            question=question,
            context=context,
        )


def span_losses(
    logits: Float[Tensor, "windows tokens 2"], target: Int[Tensor, "windows 2"], *, smoothing: float
) -> Float[Tensor, " windows"]:
    """Return the mean of the start's and the end's cross-entropy in nats.

    Tokens whose logits are -inf don't count: smoothing spreads over the others.
    """
    logs = logits.log_softmax(1)
    losses = -logs.gather(1, target.unsqueeze(1)).squeeze(1)
    if smoothing:
        counted = logits > -torch.inf
        spread = -logs.masked_fill(~counted, 0.0).sum(1) / counted.sum(1)
        losses = (1 - smoothing) * losses + smoothing * spread
    return losses.mean(1)


def official_files(answers: Callable[[], Iterable[Answer]]) -> Files:
    """Return `predictions.json`, `nbest_predictions.json` and `null_odds.json` in the form of the official scripts.

    Args:
        answers: What gives all answers, once for each file.
    """
    return {
        "predictions.json": _json_object((each.id, each.text) for each in answers()),
        "nbest_predictions.json": _json_object((each.id, _without_places(each.candidates)) for each in answers()),
        "null_odds.json": _json_object((each.id, each.null_odds) for each in answers()),
    }


def _without_places(candidates: list[Candidate]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in as_json(each).items() if name not in ("start", "end")} for each in candidates
    ]


def _json_object(items: Iterable[tuple[str | None, Any]]) -> Iterator[str]:
    """Yield the lines of a JSON object, as `json.dumps` indents it, without having it whole in memory."""
    before = "{\n"
    for name, value in items:
        yield before + json.dumps({name: value}, ensure_ascii=False, indent=4)[2:-2]
        before = ",\n"
    yield "\n}\n"


def _target_of(row: int, answer: Answer, windows: Sequence[ReadWindow], asked: Sequence[_Asked]) -> AttributionTarget:
    """Return a span, or the difference of two, to be explained of one question."""
    window = windows[asked[0].spot.window]
    stands = zip(window.part, window.offsets, strict=True)
    places = [Place(part, *span) if part >= 0 else None for part, span in stands]
    terms = [(weight, each.spot.tokens(each.side)) for weight, each in zip((1.0, -1.0), asked, strict=False)]
    return AttributionTarget(
        row=row,
        name=" rather than ".join(each.told(answer.context) for each in asked),
        text=answer.question,
        text_pair=answer.context,
        parts=("question", "context"),
        kind="span",
        prediction=answer.text,
        probability=answer.score,
        probabilities=_by_text(answer.candidates[:_SHOWN]),
        readings=[Reading(window.tokens, {"input_ids": places}, terms)],
        span=next((each.spot.span for each in asked if each.spot.span), None),
    )


def _best_span(answer: Answer) -> list[Span]:
    """Return the best span of a context, if there is one."""
    spans = ((each.start, each.end) for each in answer.candidates)
    return [(start, end) for start, end in spans if start is not None and end is not None][:1]


def _given_spans(given: Label, context: str) -> tuple[list[Span], bool]:
    """Return where a context holds any of the answers that are given, and whether there are none."""
    texts = [text for text in (given if isinstance(given, list) else [str(given)]) if text.strip()]
    spans = [span for text in texts for span in find_spans(text, context)]
    return spans, not spans and {text.strip().casefold() for text in texts} <= {_NO_ANSWER}


def _beside(contrast: str | None) -> str | None:
    """Return what is explained beside a contrast where no target is named; None: what the module says."""
    if contrast == _NO_ANSWER:
        return "answer"
    return _NO_ANSWER if contrast in ("answer", *_SIDES) else None


def _by_text(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Return the probability of each text, of equal ones that of the most probable, which comes first."""
    found: dict[str, float] = {}
    for each in candidates:
        found.setdefault(each.text or _NO_ANSWER, each.probability)
    return found


def _most_wrong(rows: Sequence[Tested]) -> list[int]:
    """Return the rows whose answers aren't exactly right, the lowest F1 and surest first."""
    return [
        i for *_, i in sorted((row.f1, -row.prediction.score, i) for i, row in enumerate(rows) if row.exact_match < 1)
    ]


def _rows(batch: Batch) -> tuple[Int[Tensor, " windows"], Int[Tensor, " rows"]]:
    """Return the row of each window, counted from 0, and each row's number of windows."""
    if "row" not in batch:
        each = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
        return each, torch.ones_like(each)
    _, group, sizes = torch.unique_consecutive(batch["row"], return_inverse=True, return_counts=True)
    return group, sizes


def _summed(losses: Float[Tensor, " windows"], batch: Batch) -> Float[Tensor, " rows"]:
    """Return the sum over each row's windows."""
    group, sizes = _rows(batch)
    return losses.new_zeros(len(sizes)).index_add(0, group, losses)


def _spans_class(config: PreTrainedConfig) -> Any:
    """Return the span class of a decoder whose weights transformers would lose; None for all others.

    Llama's, Qwen's and a few others' keep their transformer under a name that no other class of their family
    has (transformers 5.23), and so would start from random weights.
    """
    mappings = (AutoModel._model_mapping, AutoModelForQuestionAnswering._model_mapping)
    if not all(type(config) in mapping for mapping in mappings):
        return None
    plain, spans = (mapping[type(config)] for mapping in mappings)
    if isinstance(spans, tuple) or isinstance(plain, tuple) or spans.base_model_prefix == plain.base_model_prefix:
        return None
    from_config = classmethod(lambda cls, config, **arguments: cls._from_config(config, **arguments))
    return type(spans.__name__, (spans,), {"base_model_prefix": plain.base_model_prefix, "from_config": from_config})
