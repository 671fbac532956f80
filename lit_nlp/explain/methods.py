"""The methods, all Captum's, behind one signature: a batch in, the credit of its words out."""

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isgeneratorfunction
from typing import Any

import captum.attr as ca
import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from jaxtyping import Float
from torch import Tensor, nn

from lit_nlp.errors import ConfigError, did_you_mean
from lit_nlp.explain.attention import raw, rollout
from lit_nlp.explain.batch import Batch, Game

Credit = Float[Tensor, "batch words_and_rest"]

_FEW_WORDS = 8
_ORDERS = 50
_POINTS = 256
_OCCLUDED = 2


@dataclass(frozen=True)
class Settings:
    """How much work a method does, and what it draws by.

    Attributes:
        steps: Points of the path of integrated gradients.
        samples: Draws of the methods that sample; None: what gives stable results for the words of the text.
        layer: The layer of `layer_integrated_gradients` and `attention`.
        head: The head of `attention`; None: the mean over all.
        seed: What random numbers begin with, in each text anew, so that a text's result is its own.
    """

    steps: int
    samples: int | None
    layer: str | None
    seed: int
    head: int | None = None


@dataclass(frozen=True)
class Method:
    """How words are credited.

    Attributes:
        credit: A batch and settings in, the credit of each word out, and in a last column that of special tokens.
        complete: Whether the credits are to add up to the change of the score.
        by_steps: Whether they do so the better the more steps are taken.
        about: What the scores mean, for readers.
        doubles: Whether text and baseline go through the module together, and so take twice the room.
    """

    credit: Callable[[Batch, Settings], Credit]
    complete: bool
    about: str
    by_steps: bool = False
    doubles: bool = False


# Gradients


def saliency(batch: Batch, settings: Settings) -> Credit:
    """The absolute gradient of the score by each embedding, summed (Simonyan et al. 2014)."""
    return _at_embeddings(batch, ca.Saliency(batch.score_at))


def input_x_gradient(batch: Batch, settings: Settings) -> Credit:
    """Each embedding times its gradient (Shrikumar et al. 2016)."""
    return _at_embeddings(batch, ca.InputXGradient(batch.score_at))


def integrated_gradients(batch: Batch, settings: Settings) -> Credit:
    """Gradients of the score integrated along the line from the baseline's embeddings to the text's.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1, by Gauss-Legendre
    quadrature: the trapezoid rule is incomplete in Captum even on a linear model.
    """
    return _at_embeddings(
        batch, ca.IntegratedGradients(batch.score_at), baselines=batch.baselines, **_path(batch, settings)
    )


def layer_integrated_gradients(batch: Batch, settings: Settings) -> Credit:
    """Gradients integrated along the line between a layer's outputs for the baseline and for the text."""
    layer = _layer(batch, settings.layer)
    method = ca.LayerIntegratedGradients(batch.score_at, layer)
    found: Any = method.attribute(
        batch.embeddings, baselines=batch.baselines, additional_forward_args=batch.fixed, **_path(batch, settings)
    )
    credit = found[0] if isinstance(found, tuple) else found
    return batch.per_word_of(str(settings.layer), credit.sum(-1)).detach()


def deep_lift(batch: Batch, settings: Settings) -> Credit:
    """Differences to the baseline, passed back by DeepLIFT's rules where the model has modules that Captum knows.

    Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences". Elsewhere, as
    through attention and GELU, plain gradients take their place, so that the scores don't add up exactly.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hooks that Captum sets, and removes
        return _at_embeddings(batch, ca.DeepLift(_Scored(batch)), baselines=batch.baselines)


def gradient_shap(batch: Batch, settings: Settings) -> Credit:
    """Gradients at random points between baseline and text, times their difference (Lundberg and Lee 2017)."""
    found = []
    samples = settings.samples or _POINTS
    for row in range(len(batch)):
        alone = batch.game(row).readings[0]
        method = ca.GradientShap(alone.score_at)
        sizes = [min(batch.rows, samples - done) for done in range(0, samples, batch.rows)]
        with _seeded(alone, settings.seed):
            # The points are drawn one after the other, so that they are the same however many go together.
            means = [_at_embeddings(alone, method, baselines=alone.baselines, n_samples=size)[0] for size in sizes]
        weights = torch.tensor(sizes, dtype=means[0].dtype, device=means[0].device) / samples
        found.append(_widened(weights @ torch.stack(means), batch.words))
    return torch.stack(found)


# Attention


def attention_rollout(batch: Batch, settings: Settings) -> Credit:
    """How attention passes from layer to layer from each word to where the score is read: `attention.rollout`."""
    return rollout(batch)


def attention(batch: Batch, settings: Settings) -> Credit:
    """Where one layer's heads look, or one of them: `attention.raw`."""
    return raw(batch, settings.layer, settings.head)


# Words that are there or not


def feature_ablation(game: Game, settings: Settings) -> Float[Tensor, " words"]:
    """What the score loses without each word alone."""
    return _of_words(game, ca.FeatureAblation(game.score), perturbations_per_eval=game.readings[0].rows)


def occlusion(game: Game, settings: Settings) -> Float[Tensor, " words"]:
    """What the score loses without each word and its neighbour, the mean over both (Zeiler and Fergus 2014)."""
    window = (min(_OCCLUDED, game.words),)
    rows = game.readings[0].rows
    return _of_words(game, ca.Occlusion(game.score), sliding_window_shapes=window, perturbations_per_eval=rows)


def shapley_value_sampling(game: Game, settings: Settings) -> Float[Tensor, " words"]:
    """What each word adds to those before it, the mean over random orders (Castro et al. 2009).

    Each order is taken forwards and backwards: what two words do together then cancels out of the error (Mitchell et
    al. 2022, "Sampling Permutations for Shapley Value Estimation", section 4.1).
    """
    method = ca.ShapleyValueSampling(game.score)
    method.permutation_generator = _forwards_and_backwards
    rows = game.readings[0].rows
    return _of_words(game, method, n_samples=settings.samples or _ORDERS, perturbations_per_eval=rows)


def kernel_shap(game: Game, settings: Settings) -> Float[Tensor, " words"]:
    """Shapley values by a weighted regression over random coalitions (Lundberg and Lee 2017).

    Each coalition is followed by its complement (Covert and Lee 2021, "Improving KernelSHAP", section 3.2).
    """
    if game.words < 2:
        return feature_ablation(game, settings)
    method = ca.KernelShap(game.score)
    method.perturb_func = _with_complements(method.perturb_func)
    return _of_words(game, method, **_draws(game, settings))


def lime(game: Game, settings: Settings) -> Float[Tensor, " words"]:
    """The weights of a linear model fitted around the text (Ribeiro et al. 2016), by least squares, unpenalised.

    Texts are drawn with their complements, as for `kernel_shap`.
    """
    method = ca.Lime(game.score, interpretable_model=SkLearnLinearRegression())
    method.perturb_func = _with_complements(method.perturb_func)
    return _of_words(game, method, **_draws(game, settings))


def random(batch: Batch, settings: Settings) -> Credit:
    """Scores drawn at random: what any other method has to beat."""
    found = []
    for row in range(len(batch)):
        with _seeded(batch.game(row).readings[0], settings.seed):
            drawn = torch.randn(len(batch.features[row]))
            found.append(_widened(torch.cat([drawn, torch.zeros(1)]), batch.words))
    heard = torch.cat([batch.heard, torch.zeros(len(batch), 1, dtype=torch.bool)], dim=1)
    return torch.stack(found).where(heard, 0.0)


def _by_game(play: Callable[[Game, Settings], Float[Tensor, " words"]]) -> Callable[[Batch, Settings], Credit]:
    """Let a method that takes one game take a batch."""

    def credit(batch: Batch, settings: Settings) -> Credit:
        found = []
        for row in range(len(batch)):
            game, heard = batch.game(row), batch.heard[row].nonzero()[:, 0]
            credit = torch.zeros(batch.words + 1)
            if len(heard):
                with _seeded(game.readings[0], settings.seed):
                    credit[heard] = play(game.of(heard), settings).float()
            found.append(credit)
        return torch.stack(found)

    return credit


METHODS: dict[str, Method] = {
    "integrated_gradients": Method(
        integrated_gradients,
        True,
        "How far each word moves the score on the way from a blank text to this one.",
        by_steps=True,
    ),
    "layer_integrated_gradients": Method(
        layer_integrated_gradients, True, "The same, for what a deeper layer makes of each word.", by_steps=True
    ),
    "saliency": Method(saliency, False, "How much the score would react to a small change of each word; unsigned."),
    "input_x_gradient": Method(input_x_gradient, False, "Each word times the score's reaction to it."),
    "deep_lift": Method(deep_lift, True, "The difference to a blank text, passed back layer by layer.", doubles=True),
    "gradient_shap": Method(gradient_shap, True, "Integrated gradients at random points of the way."),
    "feature_ablation": Method(_by_game(feature_ablation), False, "What the score loses without the word."),
    "occlusion": Method(_by_game(occlusion), False, "What the score loses without the word and its neighbour."),
    "shapley_value_sampling": Method(
        _by_game(shapley_value_sampling), True, "The word's fair share of the score, the mean over random orders."
    ),
    "kernel_shap": Method(_by_game(kernel_shap), True, "The word's fair share of the score, by a regression."),
    "lime": Method(_by_game(lime), False, "The word's weight in a simple model around this text."),
    "attention_rollout": Method(
        attention_rollout,
        False,
        "Where attention goes, not what it carries: a look inside, and no explanation by itself.",
    ),
    "attention": Method(
        attention,
        False,
        "Where one layer's attention looks, not what it carries: a look inside, and no explanation by itself.",
    ),
    "random": Method(random, False, "Drawn at random: no explanation, but the floor for all others."),
}


def _at_embeddings(batch: Batch, captum: Any, **options: Any) -> Credit:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
        found = captum.attribute(batch.embeddings, additional_forward_args=batch.fixed, **options)
    return batch.per_word([credit.sum(-1) for credit in found]).detach()


def _path(batch: Batch, settings: Settings) -> dict[str, Any]:
    return {"n_steps": settings.steps, "method": "gausslegendre", "internal_batch_size": batch.rows}


def _of_words(game: Game, captum: Any, **options: Any) -> Float[Tensor, " words"]:
    found: Tensor = captum.attribute(torch.ones(1, game.words), baselines=0, **options)
    return found[0].detach()


def _forwards_and_backwards(words: int, samples: int) -> Iterator[list[int]]:
    """Draw orders of the words, each followed by its reverse."""
    for _ in range((samples + 1) // 2):
        order = torch.randperm(words).tolist()
        yield order
        yield order[::-1]


def _with_complements(draw: Callable[..., Any]) -> Callable[..., Tensor]:
    """Let one of Captum's ways of drawing coalitions follow each by its complement."""
    several: Iterator[Tensor] | None = None
    complement: Tensor | None = None

    def drawn(given: Any, **options: Any) -> Tensor:
        nonlocal several, complement
        if complement is not None:
            keep, complement = complement, None
            return keep
        if isgeneratorfunction(draw):
            several = several or draw(given, **options)
            keep = next(several)
        else:
            keep = draw(given, **options)
        complement = 1 - keep
        return keep

    return drawn


def _draws(game: Game, settings: Settings) -> dict[str, int]:
    """Return enough coalitions for least squares to be stable."""
    enough = 2**_FEW_WORDS if game.words <= _FEW_WORDS else max(2**_FEW_WORDS, 24 * game.words)
    return {"n_samples": settings.samples or enough, "perturbations_per_eval": game.readings[0].rows}


def _widened(credit: Float[Tensor, " own_words_and_rest"], words: int) -> Float[Tensor, " words_and_rest"]:
    """Return a row's credit with zeros for the words that only longer texts have."""
    return torch.cat([credit[:-1], credit.new_zeros(words - len(credit) + 1), credit[-1:]])


def _layer(batch: Batch, name: str | None) -> nn.Module:
    """Return a module by its name, if it gives one vector a token and isn't where integration begins."""
    known = {path: part for path, part in batch.module.named_modules() if path}  # type: ignore[attr-defined]
    such = f"name one, such as {next((path for path in known if path[-1].isdigit()), next(iter(known)))}"
    if name is None:
        raise ConfigError("layer_integrated_gradients needs a layer", where="layer", mend=such)
    if name not in known:
        raise ConfigError(f"the model has no layer {name!r}", where="layer", mend=did_you_mean(name, known) or such)
    given: list[Any] = []
    handle = known[name].register_forward_hook(lambda _layer, _read, output: given.append(output))
    try:
        batch.change()
    finally:
        handle.remove()
    first = given[0][0] if given and isinstance(given[0], tuple) else next(iter(given), None)
    tokens = {ids.shape for ids in (batch.inputs[each] for each in batch.readings[0].places)}
    by_token = isinstance(first, Tensor) and first.ndim == 3 and first.shape[:2] in tokens
    if not by_token or known[name] in batch.embedding_layers:
        raise ConfigError(f"{name} doesn't give one vector for each token", where="layer", mend=such)
    return known[name]


@contextmanager
def _seeded(batch: Batch, seed: int) -> Iterator[None]:
    """Draw by a seed of the text's own, and leave the random numbers of others alone: Captum draws from both."""
    own = zlib.crc32(batch.inputs["input_ids"].cpu().numpy().tobytes(), seed & 0xFFFFFFFF)
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(own)
        np.random.seed(own)
        try:
            yield
        finally:
            np.random.set_state(state)


class _Scored(nn.Module):
    """A batch's score as a module, whose parts DeepLift can find."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.module, self._score = batch.module, batch.score_at

    def forward(self, *given: Tensor) -> Float[Tensor, " rows"]:
        return self._score(*given)
