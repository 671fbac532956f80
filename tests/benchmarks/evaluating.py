"""Testing and predicting beside what transformers' examples and its pipeline do."""

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from sacrebleu.metrics import BLEU
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

from lit_nlp import (
    QuestionAnsweringDataModule,
    QuestionAnsweringModule,
    SentimentDataModule,
    SentimentModule,
    TranslationDataModule,
    TranslationModule,
)
from lit_nlp.metrics.question_answering import exact_match, f1
from lit_nlp.modules.base import TransformerModule
from tests.benchmarks.harness import DEVICE, PRECISION, Clock, Line, Setting, Side, rates, threads, trainer

QUESTIONS, SENTENCES = 64, 128
# More where they take next to no time.
TEXTS = 512 if DEVICE.type == "cpu" else 6000
MAX_LENGTH, DOC_STRIDE, N_BEST, MAX_ANSWER_LENGTH = 384, 128, 20, 30
BATCH_SIZE, NUM_BEAMS, MAX_NEW_TOKENS = 32, 5, 64
_BF16 = PRECISION == "bf16-mixed"
_PRECISION = "bf16" if _BF16 else "fp32"


def test_question_answering(setting: Setting) -> list[Line]:
    """MiniLM on XQuAD: from windows to answers and their scores."""
    checkpoint = setting.checkpoint("question_answering")
    articles = json.loads(setting.file("xquad_en", "dev.json").read_text())["data"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "test.json")
        file.write_text(json.dumps({"version": "1.1", "data": list(first_questions(articles, QUESTIONS))}))
        module = QuestionAnsweringModule.load_from_checkpoint(
            checkpoint, n_best=N_BEST, max_answer_length=MAX_ANSWER_LENGTH
        )
        data = QuestionAnsweringDataModule(
            str(checkpoint), test=str(file), max_length=MAX_LENGTH, doc_stride=DOC_STRIDE, batch_size=8
        )
        data.prepare_data()
        data.setup("test")
        table = data.tables["test"]
        asked = [Question(*each) for each in zip(*(table[name][:] for name in Question.__annotations__), strict=True)]
        whole, dynamic = (windows_of(asked, module.tokenizer, padding) for padding in ("max_length", False))
        scores: dict[str, str] = {}

        def ours(clock: Clock) -> None:
            test = trainer()
            with clock.running():
                (measured,) = test.test(module, data, verbose=False)
            clock.done = len(asked)
            scores["EM and F1"] = f"{measured['test/exact_match']:.2f} {measured['test/f1']:.2f}"

        def theirs(name: str, windows: Windows, clock: Clock, **settings: Any) -> None:
            with _trainer(module, AutoModelForQuestionAnswering, **settings) as peer:
                with clock.running():
                    starts, ends = peer.predict(windows.table).predictions
                    answers = answers_of(asked, windows, starts, ends)
                    found = [
                        100 * mean(rule(answer, each.answers) for answer, each in zip(answers, asked, strict=True))
                        for rule in (exact_match, f1)
                    ]
                clock.done = len(asked)
            scores[name] = f"{found[0]:.2f} {found[1]:.2f}"

        return rates(
            f"test, MiniLM-L6, XQuAD, {threads()}",
            ours,
            {
                "run_qa as it comes: fp32, padded to 384, 8 a batch": (
                    2.0,
                    lambda clock: theirs("run_qa's", whole, clock, per_device_eval_batch_size=8),
                ),
                f"run_qa at its best: {_PRECISION}, padded to the longest, 32 a batch": (
                    2.0,
                    lambda clock: theirs(
                        "at its best", dynamic, clock, per_device_eval_batch_size=32, bf16_full_eval=_BF16
                    ),
                ),
            },
            unit="questions",
            turns=setting.turns,
            also=scores,
        )


def test_translation(setting: Setting) -> list[Line]:
    """The transformer of `configs/translation.yaml` on Multi30k with 5 beams: hypotheses and their BLEU."""
    checkpoint = setting.checkpoint("translation")
    pairs = [
        setting.file("multi30k_en_de", f"val.{side}").read_text().splitlines()[:SENTENCES] for side in ("en", "de")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for side, lines in zip(("en", "de"), pairs, strict=True):
            Path(folder, f"test.{side}").write_text("".join(f"{line}\n" for line in lines))
        module = TranslationModule.load_from_checkpoint(
            checkpoint, num_beams=NUM_BEAMS, max_new_tokens=MAX_NEW_TOKENS, length_penalty=1.0
        )
        data = TranslationDataModule(
            str(checkpoint), test=f"{folder}/test.{{en,de}}", max_length=128, batch_size=BATCH_SIZE
        )
        data.prepare_data()
        data.setup("test")
        table = data.tables["test"]
        columns = datasets.Dataset.from_dict({"input_ids": table["source_ids"][:], "labels": table["target_ids"][:]})
        written: dict[str, list[str]] = {}
        told: dict[str, str] = {}

        def ours(clock: Clock) -> None:
            rows = _Rows()
            test = trainer(callbacks=[rows])
            with clock.running():
                (measured,) = test.test(module, data, verbose=False)
            clock.done = len(columns)
            written["ours"] = [row.text for row in sorted(rows.rows, key=lambda row: row.row)]
            told["BLEU"] = f"{measured['test/bleu']:.2f}"

        def theirs(clock: Clock) -> None:
            beams = {"predict_with_generate": True, "generation_num_beams": NUM_BEAMS}
            with _trainer(
                module, AutoModelForSeq2SeqLM, per_device_eval_batch_size=BATCH_SIZE, bf16=_BF16, **beams
            ) as peer:
                with clock.running():
                    ids = peer.predict(columns, max_new_tokens=MAX_NEW_TOKENS).predictions
                    ids = np.where(ids < 0, module.tokenizer.pad_token_id, ids)
                    texts = [text.strip() for text in module.tokenizer.batch_decode(ids, skip_special_tokens=True)]
                    bleu = BLEU().corpus_score(texts, [pairs[1]]).score
                clock.done = len(columns)
            same = sum(one == other for one, other in zip(texts, written["ours"], strict=True))
            told["theirs"], told["hypotheses that are the same"] = f"{bleu:.2f}", f"{same} of {len(texts)}"

        name = f"Seq2SeqTrainer.predict, {_PRECISION}, {BATCH_SIZE} a batch"
        return rates(
            f"test, 2.7 M transformer, Multi30k, {NUM_BEAMS} beams, {threads()}",
            ours,
            {name: (1.5, theirs)},
            unit="sentences",
            turns=setting.turns,
            also=told,
        )


def predict(setting: Setting) -> list[Line]:
    """MiniLM on SST-2 sentences, from texts to labels: as a verb does it, and as Python does."""
    checkpoint = setting.checkpoint("sentiment")
    with setting.file("sst2", "dev.tsv" if DEVICE.type == "cpu" else "train.tsv").open(newline="") as file:
        texts = [row[0] for row in islice(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), TEXTS)]
    module = SentimentModule.load_from_checkpoint(checkpoint)
    labels: dict[str, list[str]] = {}
    told: dict[str, str] = {}

    def by_trainer(clock: Clock) -> None:
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, LIT_NLP_CACHE=folder):
            file = Path(folder, "texts.txt")
            file.write_text("".join(f"{text}\n" for text in texts))
            predicts = trainer()
            with clock.running():
                data = SentimentDataModule(str(checkpoint), predict=str(file), max_length=128)
                found = [row for batch in predicts.predict(module, data) for row in batch]
            labels["ours"] = [row.label for row in sorted(found, key=lambda row: row.row)]
        clock.done = len(texts)

    def by_texts(clock: Clock) -> None:
        module.to(DEVICE)  # from where a Trainer left it
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=_BF16), clock.running():
            labels["ours"] = [row.label for row in module.predict_texts(texts)]
        clock.done = len(texts)

    with tempfile.TemporaryDirectory() as folder:
        module.model.save_pretrained(folder)
        module.tokenizer.save_pretrained(folder)

        def pipeline(dtype: torch.dtype) -> Side:
            pipe = transformers.pipeline("text-classification", folder, dtype=dtype, device=DEVICE)

            def run(clock: Clock) -> None:
                with clock.running():
                    found = [row["label"] for row in pipe(texts, batch_size=32, truncation=True, max_length=128)]
                clock.done = len(texts)
                same = sum(one == other for one, other in zip(found, labels["ours"], strict=True))
                told[f"labels that are the same in {str(dtype).removeprefix('torch.')}"] = f"{same} of {len(texts)}"

            return run

        against = {"pipeline as it comes: fp32, 32 a batch": (3.0, pipeline(torch.float32))}
        if _BF16:
            against["pipeline at its best: bf16, 32 a batch"] = (3.0, pipeline(torch.bfloat16))
        return [
            line
            for name, ours in (("Trainer.predict", by_trainer), ("predict_texts", by_texts))
            for line in rates(
                f"{name}, MiniLM-L6, SST-2, {threads()}",
                ours,
                against,
                unit="texts",
                turns=setting.turns,
                also=told,
            )
        ]


@dataclass(frozen=True)
class Question:
    """A question, what it is asked of, and its answers."""

    question: str
    context: str
    answers: list[str]


@dataclass(frozen=True)
class Windows:
    """What the example makes of questions.

    Attributes:
        table: What the model reads.
        question: Of each window, the number of its question.
        offsets: Of each window and token, its characters in the context; None outside of it.
    """

    table: datasets.Dataset
    question: list[int]
    offsets: list[list[tuple[int, int] | None]]


def first_questions(articles: Sequence[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield SQuAD's articles up to so many questions, a paragraph each."""
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        some = paragraph["qas"][:count]
        count -= len(some)
        if some:
            yield {"paragraphs": [paragraph | {"qas": some}]}


def windows_of(asked: Sequence[Question], tokenizer: Any, padding: str | bool) -> Windows:
    """Split contexts as the example does."""
    read = tokenizer(
        [each.question for each in asked],
        [each.context for each in asked],
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=DOC_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=padding,
    )
    question, offsets = read.pop("overflow_to_sample_mapping"), read.pop("offset_mapping")
    parts = [read.sequence_ids(window) for window in range(len(question))]
    return Windows(
        datasets.Dataset.from_dict(dict(read)),
        question,
        [
            [span if part == 1 else None for span, part in zip(spans, of_tokens, strict=True)]
            for spans, of_tokens in zip(offsets, parts, strict=True)
        ],
    )


def answers_of(asked: Sequence[Question], windows: Windows, starts: np.ndarray, ends: np.ndarray) -> list[str]:
    """Return the answer to each question, from the logits `[windows, tokens]` of all windows."""
    own: list[list[int]] = [[] for _ in asked]
    for window, number in enumerate(windows.question):
        own[number].append(window)
    return [
        best_answer(each.context, [(starts[i], ends[i], windows.offsets[i]) for i in some])
        for each, some in zip(asked, own, strict=True)
    ]


def best_answer(
    context: str, windows: Sequence[tuple[np.ndarray, np.ndarray, Sequence[tuple[int, int] | None]]]
) -> str:
    """Return the span of the highest sum of logits among the best starts and ends; empty where there is none.

    After `postprocess_qa_predictions` of transformers' example: of each window the `N_BEST` starts and as many ends
    are paired where both lie in the context, in order and no further apart than `MAX_ANSWER_LENGTH` tokens.

    Args:
        context: What the question is asked of.
        windows: Start logits, end logits and offsets of each window.
    """
    found: list[tuple[float, int, int]] = []
    for starts, ends, offsets in windows:
        firsts, lasts = (np.argsort(logits)[: -N_BEST - 1 : -1].tolist() for logits in (starts, ends))
        for first in firsts:
            for last in lasts:
                if max(first, last) >= len(offsets) or not first <= last < first + MAX_ANSWER_LENGTH:
                    continue
                begin, end = offsets[first], offsets[last]
                if begin is not None and end is not None:
                    found.append((float(starts[first] + ends[last]), begin[0], end[1]))
    best = sorted(found, key=lambda span: span[0], reverse=True)[:N_BEST]
    # The example gives every candidate its text and its probability, too.
    scores = np.array([score for score, _, _ in best])
    odds = np.exp(scores - scores.max()) if best else scores
    candidates = [(context[begin:end], odd / odds.sum()) for (_, begin, end), odd in zip(best, odds, strict=True)]
    return candidates[0][0] if candidates else ""


class _Rows(Callback):
    """Keeps what the steps of a test return."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self.rows += outputs["rows"]


@contextmanager
def _trainer(module: TransformerModule, auto: Any, **settings: Any) -> Iterator[transformers.Trainer]:
    """Give transformers' Trainer for the model as it is loaded from a folder."""
    writes = "predict_with_generate" in settings
    kind = transformers.Seq2SeqTrainer if writes else transformers.Trainer
    kinds: Callable[..., Any] = transformers.Seq2SeqTrainingArguments if writes else transformers.TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        module.model.save_pretrained(folder)
        model = auto.from_pretrained(folder, attn_implementation=module.model.config._attn_implementation)
        collator = (transformers.DataCollatorForSeq2Seq if writes else transformers.DataCollatorWithPadding)(
            module.tokenizer
        )
        arguments = {"report_to": "none", "disable_tqdm": True, "use_cpu": DEVICE.type == "cpu"}
        yield kind(model, kinds(folder, **arguments | settings), collator, processing_class=module.tokenizer)
