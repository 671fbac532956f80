import random

import pytest
import sacrebleu

from lit_nlp.metrics.translation import SacreMetric
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


def test_processes_add_up_too() -> None:
    whole, *parts = (SacreMetric("bleu") for _ in range(3))
    whole.update(hypotheses(), GERMAN)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
        part.update(hypotheses()[rows], GERMAN[rows])
    parts[0].statistics += parts[1].statistics
    assert parts[0].compute() == whole.compute()


def test_the_signature_is_sacrebleus() -> None:
    assert SacreMetric("bleu").signature == str(_signature())
    assert "tok:zh" in SacreMetric("bleu", trg_lang="zh").signature


def _signature() -> object:
    bleu = sacrebleu.BLEU()
    bleu.corpus_score(GERMAN, [GERMAN])
    return bleu.get_signature()
