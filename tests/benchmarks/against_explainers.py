"""Integrated gradients beside transformers-interpret's, and beside inseq's for what an encoder-decoder writes.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.against_explainers \\
        --checkpoint best.ckpt --texts dev.tsv --peer-python PEER/bin/python

The peers live in an environment of their own, made by `python -m venv PEER` and
`PEER/bin/pip install --constraint constraints.txt torch transformers captum transformers-interpret inseq`.
They load the checkpoint's backbone from a Hugging Face folder. The texts are the first column of a table without
a header. Both sides explain the same class, or the same tokens, in turns; the peer's scores of tokens are added up
to our words. Time is the processor's, so that a busy machine counts less.

transformers-interpret explains the probability of the class, not its logit. Its baseline is padding between [CLS]
and [SEP], as ours, but its [SEP] has the second text's token type. It takes 50 steps whether they suffice or not, and
divides all scores by their Euclidean norm, which no correlation sees.

inseq is asked for the log probability, with 50 steps, and for the words written before, as ours; its baseline is the
unknown token. It scales embeddings before it hands them over, and transformers' Marian decoder scales them once
more: with `scale_embedding`, as OPUS-MT has it, inseq explains another model, and the probabilities show it.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from jaxtyping import Float, Int
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

import lit_nlp
from lit_nlp.checkpoints import SECTION, read_checkpoint
from lit_nlp.explain.attribution import Attribution, attribute
from lit_nlp.explain.batch import Features
from lit_nlp.modules.text_to_text import TextToTextModule
from lit_nlp.targets import AttributionTarget

# Below this many words a correlation says nothing.
_FEWEST_WORDS = 3
# The smallest change of a score in float32 that is one.
_TINY = 1e-6

_SERVE = """
import json, sys, time
replies, sys.stdout = sys.stdout, sys.stderr
folder = sys.argv[1]
{load}
for line in sys.stdin:
    asked = json.loads(line)
    start = time.process_time()
    explained = explain(asked)
    seconds = time.process_time() - start
    print(json.dumps({{"seconds": seconds, "explanations": read(asked, explained)}}), file=replies, flush=True)
"""

# The gap is what the scores lack to add up along the path that Captum took: it exchanges word embeddings only, so
# that positions and token types are the text's at both ends. The delta that the package reports has them zeroed at
# the baseline's end.
_TRANSFORMERS_INTERPRET = _SERVE.format(
    load="""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers_interpret import SequenceClassificationExplainer

model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
explainer = SequenceClassificationExplainer(model, AutoTokenizer.from_pretrained(folder))

def explain(asked):
    return explainer(asked["text"], class_name=asked["target"])

@torch.no_grad()
def probability(ids):
    kept = {"position_ids": explainer.position_ids, "token_type_ids": explainer.token_type_ids}
    kept = {name: ids_ for name, ids_ in kept.items() if getattr(explainer, "accepts_" + name)}
    logits = model(ids, attention_mask=explainer.attention_mask, **kept).logits.double()
    return logits.softmax(1)[0, explainer.selected_index].item()

def read(asked, explained):
    text, baseline = probability(explainer.input_ids), probability(explainer.ref_input_ids)
    return [{
        "tokens": {"input_ids": explainer.input_ids[0].tolist()},
        "scores": {"input_ids": [score for _, score in explained]},
        "probability": text,
        "change": text - baseline,
        "delta": explainer.attributions._attributions.double().sum().item() - (text - baseline),
        "reported": explainer.attributions.delta.item(),
    }]
"""
)

_INSEQ = _SERVE.format(
    load="""
import inseq

model = inseq.load_model(folder, "integrated_gradients")

def explain(asked):
    return model.attribute(
        [asked["text"]], [asked["output"]], attribute_target=True, attr_pos_end=asked["tokens"] + 1, n_steps=50,
        attributed_fn="probability", logprob=True, step_scores=["probability"], return_convergence_delta=True,
        show_progress=False, pretty_progress=False,
    )

def read(asked, explained):
    found, tokens = explained.sequence_attributions[0], asked["tokens"]
    source = found.source_attributions.double().sum(-1)
    prefix = found.target_attributions.double().sum(-1).nan_to_num()[:tokens]
    sums = source.sum(0) + prefix.sum(0)
    deltas, logs = found.step_scores["deltas"].double(), found.step_scores["probability"].double()
    return [{
        "tokens": {
            "input_ids": [token.id for token in found.source],
            "decoder_input_ids": [token.id for token in found.target[:tokens]],
        },
        "scores": {"input_ids": source[:, i].tolist(), "decoder_input_ids": prefix[:, i].tolist()},
        "probability": logs[i].exp().item(),
        "change": (sums[i] - deltas[i]).item(),
        "delta": deltas[i].item(),
        "reported": deltas[i].item(),
    } for i in range(tokens)]
"""
)

Ask = Callable[[dict[str, Any]], dict[str, Any]]
Named = dict[str, list[Attribution]]


@dataclass
class Case:
    """A text, what is explained of it, and what the peer is asked."""

    text: str
    targets: list[AttributionTarget]
    question: dict[str, Any]
    options: dict[str, Any]


@dataclass
class Turns:
    """What both sides found in the last round, and the seconds of each round."""

    ours: list[Attribution]
    theirs: list[dict[str, Any]]
    seconds: list[float]
    peer_seconds: list[float]


@contextmanager
def peer(python: Path, script: str, folder: str) -> Iterator[Ask]:
    """Run a script in another interpreter, which answers a question of one line by a line."""
    process = subprocess.Popen(
        # Isolated from this folder and its environment; its warnings aren't ours.
        [str(python), "-I", "-W", "ignore", "-c", script, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    questions, replies = process.stdin, process.stdout
    assert questions is not None
    assert replies is not None

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        questions.write(json.dumps(question) + "\n")
        questions.flush()
        reply = replies.readline()
        if not reply:
            raise SystemExit(f"the peer ended with status {process.wait()}; see above")
        return dict(json.loads(reply))

    try:
        yield ask
    finally:
        questions.close()
        process.wait()


def cases(module: Any, texts: Sequence[str]) -> list[Case]:
    """Return what both sides are asked of each text: its class, or each token that is written for it."""
    writes = isinstance(module, TextToTextModule)
    found = []
    for text, said in zip(texts, module.predict_texts(texts), strict=True):
        options = {"outputs": [said.text]} if writes else {"target": said.label}
        targets = module.attribution_targets([text], **options)
        asked = {"output": said.text, "tokens": len(targets)} if writes else {"target": said.label}
        if targets:
            found.append(Case(text, targets, {"text": text, **asked}, options))
    return found


def per_word(target: AttributionTarget, explanation: dict[str, Any]) -> list[float]:
    """Add the peer's scores of tokens up to our words; empty where it read other tokens."""
    (reading,), features = target.readings, Features.of(target)
    if any(explanation["tokens"].get(name) != reading.inputs[name] for name in reading.places):
        return []
    words = [0.0] * len(features)
    for name in reading.places:
        for shares, score in zip(features.membership(reading, name), explanation["scores"][name], strict=True):
            for word, share in shares.items():
                words[word] += share * score
    return words


def probability_of(outputs: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return what transformers-interpret attributes."""
    return outputs.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def explained_by_us(module: Any, case: Case, **options: Any) -> list[Attribution]:
    """Explain a text as a user of `attribute` would."""
    return attribute(module, [case.text], **case.options, **options)


def in_turns(module: Any, asked: Sequence[Case], ask: Ask, rounds: int) -> Turns:
    """Let both sides explain each text in turns, once to be warm and then `rounds` times."""
    ask(asked[0].question), explained_by_us(module, asked[0])
    turns = Turns([], [], [], [])
    for _ in range(rounds):
        turns.ours, turns.theirs = [], []
        seconds, peer_seconds = 0.0, 0.0
        for case in asked:
            reply = ask(case.question)
            start = time.process_time()
            turns.ours += explained_by_us(module, case)
            seconds += time.process_time() - start
            turns.theirs += reply["explanations"]
            peer_seconds += reply["seconds"]
        turns.seconds.append(seconds)
        turns.peer_seconds.append(peer_seconds)
    return turns


def print_agreement(targets: Sequence[AttributionTarget], theirs: Sequence[dict[str, Any]], named: Named) -> None:
    """Print the correlations of word scores, by the name of what ours explain."""
    words = list(map(per_word, targets, theirs))
    longer = [i for i, scores in enumerate(words) if len(scores) >= _FEWEST_WORDS]
    print(
        f"{len(longer)} of {len(words)} explanations compared; {words.count([])} are of other tokens, the rest short\n"
    )
    print("| scores of lit_nlp | Spearman, mean (lowest) | Pearson, mean (lowest) |\n|---|---|---|")
    for name, attributions in named.items():
        ours = [read_words(each) for each in attributions]
        pairs = [(ours[i], words[i][: len(ours[i])]) for i in longer]
        rank, linear = ([float(by(*pair).statistic) for pair in pairs] for by in (spearmanr, pearsonr))
        print(f"| {name} | {mean(rank):.3f} ({min(rank):.3f}) | {mean(linear):.3f} ({min(linear):.3f}) |")


def print_sums_and_time(turns: Turns, texts: int, name: str) -> None:
    """Print whether each side's scores add up, and what they cost."""
    ours = [share(each.convergence_delta or 0.0, change_of(each)) for each in turns.ours]
    gaps, told = ([share(each[key], each["change"]) for each in turns.theirs] for key in ("delta", "reported"))
    apart = [abs((a.probability or 0.0) - b["probability"]) for a, b in zip(turns.ours, turns.theirs, strict=True)]
    ratios = [b / a for a, b in zip(turns.seconds, turns.peer_seconds, strict=True)]
    seconds, peer_seconds = median(turns.seconds) / texts, median(turns.peer_seconds) / texts
    print(f"\n| | lit_nlp | {name} |\n|---|---|---|")
    print(f"| convergence delta as a share of the change: median (largest) | {spread(ours)} | {spread(gaps)} |")
    print(f"| the same, as it is reported | {spread(ours)} | {spread(told)} |")
    print(f"| explanations within 1 % of the change | {' | '.join(map(within, (ours, gaps)))} |")
    print(f"| probability of what is explained, off the module's by: median (largest) | | {spread(apart)} |")
    print(f"| CPU seconds a text | {seconds:.2f} | {peer_seconds:.2f} |")
    print(f"| the peer's as a multiple of ours, in each round | | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |")


def change_of(found: Attribution) -> float:
    """Return the change of score that the credit should add up to."""
    credit = sum(word.score for word in found.words + found.pair_words) + found.special_score
    return credit - (found.convergence_delta or 0.0)


def read_words(found: Attribution) -> list[float]:
    """Return the scores of all words but those that were written later, which can have none."""
    end = len(found.pair_words) if found.span is None else sum(w.start < found.span[0] for w in found.pair_words)
    return [word.score for word in found.words + found.pair_words[:end]]


def share(delta: float, change: float) -> float:
    """Return how large a delta is beside the change that the scores are to explain."""
    return abs(delta) / max(abs(change), _TINY)


def within(shares: Sequence[float]) -> str:
    """Return how many of the deltas are as small as `attribute` asks for."""
    return f"{sum(each <= 0.01 for each in shares)} of {len(shares)}"


def spread(values: Sequence[float]) -> str:
    """Return the median, and the largest value in brackets."""
    return f"{median(values):.2g} ({max(values):.2g})"


def main() -> None:
    """Print how far the scores agree, whether each side's add up, and what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with given.texts.open(newline="") as file:
        texts = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][: given.rows]
    module_class = getattr(lit_nlp, read_checkpoint(given.checkpoint)[SECTION]["module"])
    module = module_class.load_from_checkpoint(given.checkpoint)
    writes = isinstance(module, TextToTextModule)
    if writes and not module.model.config.is_encoder_decoder:
        raise SystemExit("inseq is compared on encoder-decoders only")
    asked = cases(module, texts)
    with tempfile.TemporaryDirectory() as folder:
        module.model.save_pretrained(folder)
        module.tokenizer.save_pretrained(folder)
        with peer(given.peer_python, _INSEQ if writes else _TRANSFORMERS_INTERPRET, folder) as ask:
            turns = in_turns(module, asked, ask, given.rounds)
    if writes:
        alike = [found for case in asked for found in explained_by_us(module, case, baseline="unk")]
        named = {"as they come, against padding": turns.ours, "against unknown tokens, as inseq's": alike}
    else:
        module.score = probability_of
        alike = [found for case in asked for found in explained_by_us(module, case)]
        named = {"as they come, of the logit": turns.ours, "of the probability, as transformers-interpret's": alike}
    print_agreement([target for case in asked for target in case.targets], turns.theirs, named)
    print_sums_and_time(turns, len(asked), "inseq" if writes else "transformers-interpret")


if __name__ == "__main__":
    main()
