"""Several methods on the same texts: their attributions, and which of them are true of the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lit_nlp.errors import ConfigError, require_list
from lit_nlp.explain.attribution import ALL, Attribution, check_asked, credited, explanation, games, targets_of
from lit_nlp.explain.explainable import Explainable
from lit_nlp.explain.faithfulness import (
    METRICS,
    RANDOM,
    Comparison,
    Faithfulness,
    Remembered,
    compare,
    max_sensitivity,
    measure,
)
from lit_nlp.explain.methods import methods_of
from lit_nlp.explain.options import Options
from lit_nlp.explain.rationales import Rationale
from lit_nlp.targets import Label
from lit_nlp.tokenization import Text


def compare_methods(
    module: Explainable,
    texts: Sequence[Text],
    methods: Sequence[str],
    *,
    target: str | None = None,
    contrast: str | None = None,
    outputs: Sequence[Label] | None = None,
    labels: Sequence[Label | None] | None = None,
    sensitivity: bool = False,
    rationales: Sequence[Rationale | None] | None = None,
    **options: Any,
) -> tuple[list[Attribution], Comparison]:
    """Explain texts by several methods, and measure each beside random scores.

    Args:
        module: The module to explain.
        texts: Texts, or pairs of texts.
        methods: Names in `METHODS`; random scores stand beside them.
        target: As for `attribute`, but one.
        contrast: Explained with the target; the figures are of the target's own probability.
        outputs: What is taken as said of each text.
        labels: The gold labels, to be shown beside the predictions.
        sensitivity: Measure max-sensitivity, too: it takes eleven explanations of each text.
        rationales: Which words of each text people marked, where they did: what plausibility is measured by.
        options: Those of `Options`, for all methods alike; figures are taken with the same `baseline` and `seed`.

    Returns:
        The attributions, method by method, and how the methods compare.

    Raises:
        ConfigError: What was given is no module or no list; a method stands twice, is unknown, or comes by itself;
            an option is out of range or without a use for any of them; or the module gives numbers, which have no
            probability.
    """
    require_list(methods, "methods")
    if len(set(methods)) < len(methods):
        raise ConfigError(f"a method stands twice in {', '.join(methods)}", where="methods")
    if not set(methods) - {RANDOM}:
        raise ConfigError("there are no methods to compare", where="methods", mend="name one")
    if not (target is None or (isinstance(target, str) and target != ALL)):
        raise ConfigError("methods are compared on one target", where="target", mend="name one")
    chosen, names = Options.of(options), [*(name for name in methods if name != RANDOM), RANDOM]
    if chosen.method not in (Options.method, *methods):
        raise ConfigError("no single method where methods are compared", where="method", mend="name it among them")
    known = dict(zip(names, methods_of(names, chosen), strict=True))
    check_asked(module, texts, labels=labels, outputs=outputs, rationales=rationales)
    with module.attributing():
        asked: dict[str, Any] = {"contrast": contrast, "outputs": outputs, "batch_size": chosen.batch_size}
        targets = targets_of(module, texts, target=target, **asked)
        if any(each.probability is None for each in targets):
            raise ConfigError("methods are compared by probabilities, which a score has none of", where="methods")
        of_each = {name: replace(chosen, method=name) for name in names}
        found = {name: credited(module, targets, known[name], of_each[name], labels=labels) for name in names}
        results: dict[str, list[Faithfulness | None]] = {name: [] for name in names}
        played = games(module, targets, chosen)
        bar = tqdm(played, total=len(targets), disable=not chosen.progress, desc="measuring", unit="target")
        for i, game in enumerate(bar):
            remembered = Remembered(game)
            marked = rationales[targets[i].row] if rationales is not None else None
            for name, attributions in found.items():
                # Behind the words that are played come only those that are written later.
                rationale = None if marked is None else marked.words_of(attributions[i])[: game.words]
                scores = _scores(attributions[i])[: game.words]
                measured = measure(remembered, scores, rationale=rationale, seed=chosen.seed)
                if measured is not None and sensitivity:
                    explain, embeddings = explanation(module, targets[i], known[name], of_each[name])
                    moves = max_sensitivity(explain, embeddings, seed=chosen.seed)
                    measured = replace(measured, max_sensitivity=moves)
                results[name].append(measured)
                attributions[i] = replace(attributions[i], faithfulness=_figures(measured))
    comparison = compare(results, texts=[target.row for target in targets], seed=chosen.seed)
    return [each for name in names for each in found[name]], comparison


def _figures(measured: Faithfulness | None) -> dict[str, float]:
    """Return one text's figures by name, those that are defined."""
    figures = {name: metric.of(measured) for name, metric in METRICS.items()} if measured else {}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _scores(attribution: Attribution) -> Float[Tensor, " words"]:
    return torch.tensor([word.score for word in attribution.words + attribution.pair_words], dtype=torch.double)
