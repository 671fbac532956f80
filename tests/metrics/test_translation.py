import multiprocessing
import random
import re
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lit_nlp.metrics.question_answering import SquadMetric, f1
from lit_nlp.metrics.translation import SacreMetric
from lit_nlp.modules.generative_question_answering import RougeL
from tests.translators import GERMAN

OF_CORPUS = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf, "ter": sacrebleu.corpus_ter}


def hypotheses() -> list[str]:
    """The references with words dropped, swapped and repeated, one of them empty."""
    draw = random.Random(0)
    texts = [" ".join(word for word in text.split() if draw.random() > 0.2) for text in GERMAN[:-1]]
    return [f"{texts[0]} {texts[0]}", *texts[1:], ""]


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_batches_add_up_to_sacrebleus_own_figure_of_the_corpus(name: str, size: int) -> None:
    metric, said = SacreMetric(name), hypotheses()
    for start in range(0, 6, size):
        metric.update(said[start : start + size], GERMAN[start : start + size])
    assert metric.compute().item() == pytest.approx(OF_CORPUS[name](said, [GERMAN]).score, rel=1e-6)


def measured_by(rank: int, results: Any, store: str) -> None:
    """Measure a share of the texts in a process of its own: two texts, or four."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    said, rows = hypotheses(), (slice(0, 2), slice(2, 6))[rank]
    bleu, rouge, squad = SacreMetric("bleu"), RougeL(), SquadMetric()
    bleu.update(said[rows], GERMAN[rows])
    rouge.update(said[rows], [[text] for text in GERMAN[rows]])
    squad.update(said[rows], [0.0] * len(said[rows]), [[text] for text in GERMAN[rows]])
    results[rank] = [float(bleu.compute()), float(rouge.compute()["rouge_l"]), float(squad.compute()["f1"])]
    torch.distributed.destroy_process_group()


class Words(Tokenizer):
    """rouge_score's words, of any script."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def test_rouge_reads_every_script() -> None:
    for said, reference, expected in ("Привет, мир", "привет мир", 100), ("東京", "大阪", 0), ("3 %", "3 $", 100):
        metric = RougeL()
        metric.update([said], [[reference]])
        assert float(metric.compute()["rouge_l"]) == pytest.approx(expected)


def test_processes_with_unequal_shares_find_what_one_does(tmp_path: Path) -> None:
    said = hypotheses()
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    rouge = [scorer.score(text, other)["rougeL"].fmeasure for text, other in zip(GERMAN, said, strict=True)]
    squad = [f1(text, [other]) for text, other in zip(said, GERMAN, strict=True)]
    expected = [sacrebleu.corpus_bleu(said, [GERMAN]).score, 100 * sum(rouge) / 6, 100 * sum(squad) / 6]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(measured_by, (results, str(tmp_path / "store")), nprocs=2)
        for found in results.values():
            assert found == pytest.approx(expected, rel=1e-5)
        assert len(results) == 2


def test_the_signature_is_sacrebleus() -> None:
    assert SacreMetric("bleu").signature == str(_signature())
    assert "tok:zh" in SacreMetric("bleu", trg_lang="zh").signature


def _signature() -> object:
    bleu = sacrebleu.BLEU()
    bleu.corpus_score(GERMAN, [GERMAN])
    return bleu.get_signature()
