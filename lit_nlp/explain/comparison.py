"""Several methods on the same texts: their attributions, and which of them are true of the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lit_nlp.errors import ConfigError, known_name
from lit_nlp.explain.attribution import Attribution, credited, explanation, games, targets_of
from lit_nlp.explain.batch import Game
from lit_nlp.explain.explainable import Explainable
from lit_nlp.explain.faithfulness import (
    RANDOM,
    Comparison,
    Faithfulness,
    Remembered,
    compare,
    max_sensitivity,
    measure,
)
from lit_nlp.explain.methods import METHODS
from lit_nlp.explain.rationales import Rationale
from lit_nlp.tokenization import Text

_OF_EXPLANATION = ("baseline", "layer", "head", "samples", "seed", "batch_size")


def compare_methods(
    module: Explainable,
    texts: Sequence[Text],
    methods: Sequence[str],
    *,
    target: str | None = None,
    contrast: str | None = None,
    outputs: Sequence[str] | None = None,
    baseline: str = "pad",
    batch_size: int = 16,
    seed: int = 0,
    sensitivity: bool = False,
    rationales: Sequence[Rationale | None] | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[list[Attribution], Comparison]:
    """Explain texts by several methods, and measure each beside random scores.

    Args:
        module: The module to explain.
        texts: Texts, or pairs of texts.
        methods: Names in `METHODS`; random scores stand beside them.
        target: As for `attribute`, and so are the others.
        contrast: Explained with the target; the figures are of the target's own probability.
        outputs: What is taken as written.
        baseline: The special token that stands for a word that isn't there, in methods and figures alike.
        batch_size: The sequences that go through the module at once.
        seed: What methods and figures draw by.
        sensitivity: Measure max-sensitivity, too: it takes eleven explanations of each text.
        rationales: Which words of each text people marked, where they did: what plausibility is measured by.
        progress: Show a bar that counts what is finished.
        options: More arguments of `attribute`.

    Returns:
        The attributions, method by method, and how the methods compare.

    Raises:
        ConfigError: A method stands twice, or is unknown; or the module gives numbers, which have no probability.
    """
    if rationales is not None and len(rationales) != len(texts):
        raise ConfigError(f"there are {len(texts)} texts but {len(rationales)} rationales", where="rationales")
    for method in methods:
        known_name(method, METHODS, "method")
    if len(set(methods)) < len(methods):
        raise ConfigError(f"a method stands twice in {', '.join(methods)}", where="methods")
    with module.attributing():
        targets = targets_of(module, texts, target=target, contrast=contrast, outputs=outputs, batch_size=batch_size)
        if any(each.probability is None for each in targets):
            raise ConfigError("methods are compared by probabilities, which a score has none of", where="methods")
        shared = {**options, "baseline": baseline, "batch_size": batch_size, "seed": seed, "progress": progress}
        found = {method: credited(module, targets, method=method, **shared) for method in [*methods, RANDOM]}
        results: dict[str, list[Faithfulness | None]] = {method: [] for method in found}
        played = games(module, targets, baseline=baseline, batch_size=batch_size)
        bar = tqdm(played, total=len(targets), disable=not progress, desc="measuring", unit="target")
        for i, game in enumerate(bar):
            read = _read(game)
            remembered = Remembered(game.of(read))
            marked = rationales[targets[i].row] if rationales is not None else None
            for method, attributions in found.items():
                rationale = None if marked is None else marked.words_of(attributions[i])[read]
                measured = measure(remembered, _scores(attributions[i])[read], rationale=rationale, seed=seed)
                if measured is not None and sensitivity:
                    chosen = {name: shared[name] for name in _OF_EXPLANATION if name in shared}
                    explain, embeddings = explanation(module, targets[i], method=method, **chosen)
                    measured = replace(measured, max_sensitivity=max_sensitivity(explain, embeddings, seed=seed))
                results[method].append(measured)
    comparison = compare(results, texts=[target.row for target in targets], seed=seed)
    return [each for method in found for each in found[method]], comparison


def _read(game: Game) -> Int[Tensor, " words"]:
    """The words that the model reads: not those that are cut off, stand in another window, or are written later."""
    return torch.stack([reading.heard[0] for reading in game.readings]).any(0).nonzero()[:, 0]


def _scores(attribution: Attribution) -> Float[Tensor, " words"]:
    return torch.tensor([word.score for word in attribution.words + attribution.pair_words], dtype=torch.double)
