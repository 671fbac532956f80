"""Integrated gradients beside a loop of Captum's, one text at a time."""

import csv
from itertools import islice

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

from lit_nlp import SentimentModule, attribute
from tests.benchmarks.harness import DEVICE, Clock, Line, Setting, rates, threads

STEPS, TOLERANCE = 50, 0.01
# Sentences, and how many are run at once: a GPU is kept waiting by few, as by Captum's, of which one is run at a time.
TEXTS, BATCH_SIZE = (48, 32) if DEVICE.type == "cpu" else (480, 256)


def explain(setting: Setting) -> list[Line]:
    """MiniLM on SST-2 sentences: the logit of the class that is predicted, against padding between special tokens."""
    checkpoint = setting.checkpoint("sentiment")
    with setting.file("sst2", "dev.tsv").open(newline="") as file:
        texts = [row[0] for row in islice(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), TEXTS)]
    module = SentimentModule.load_from_checkpoint(checkpoint, map_location=DEVICE)
    told: dict[str, str] = {}

    def ours(clock: Clock) -> None:
        with clock.running():
            found = attribute(module, texts, tolerance=TOLERANCE, batch_size=BATCH_SIZE)
        clock.done = len(texts)
        told["within 1 %"] = f"{sum(bool(each.converged) for each in found)} of {len(texts)}"

    model, tokenizer = module.model.eval(), module.tokenizer
    special = torch.tensor(tokenizer.all_special_ids, device=DEVICE)

    def logits(ids: Tensor) -> Tensor:
        return model(ids, attention_mask=torch.ones_like(ids)).logits  # type: ignore[no-any-return]

    def theirs(clock: Clock) -> None:
        captum, found = LayerIntegratedGradients(logits, model.get_input_embeddings()), []
        with clock.running():
            for text in texts:
                ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")["input_ids"].to(DEVICE)
                baseline = ids.where(torch.isin(ids, special), tokenizer.pad_token_id)
                with torch.no_grad():
                    target = int(logits(ids).argmax())
                scores = captum.attribute(ids, baseline, target=target, n_steps=STEPS)
                found.append((ids, baseline, target, float(scores.sum())))
        clock.done, complete = len(texts), 0
        for ids, baseline, target, credit in found:
            with torch.no_grad():
                change = float((logits(ids) - logits(baseline))[0, target])
            complete += abs(credit - change) <= TOLERANCE * abs(change)
        told["theirs"] = f"{complete} of {len(texts)}"

    return rates(
        f"explain, MiniLM-L6, SST-2, integrated gradients to 1 %, {threads()}",
        ours,
        {f"Captum's LayerIntegratedGradients, {STEPS} steps, one text at a time": (4.0, theirs)},
        unit="texts",
        turns=setting.turns,
        also=told,
    )
