"""The methods, all Captum's, behind one signature: a batch in, the credit of its words out."""

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isgeneratorfunction
from typing import Any, Literal

import captum.attr as ca
import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from captum.attr._core.gradient_shap import InputBaselineXGradient
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lit_nlp.errors import ConfigError, did_you_mean, known_name
from lit_nlp.explain.attention import raw, rollout
from lit_nlp.explain.batch import Batch, Game
from lit_nlp.explain.faithfulness import RANDOM
from lit_nlp.explain.options import Options
from lit_nlp.explain.path import FIRST_POINTS, Lines

Credit = Float[Tensor, "batch words_and_rest"]
Accounted = tuple[Credit, Float[Tensor, " batch"]]

_FEW_WORDS = 8
_ORDERS = 50
_POINTS = 64
# With fewer coalitions, least squares follow the draw: on a sentence of 42 words two seeds agree by 0.3 to 0.6.
_SAMPLES_PER_WORD = 4
_OCCLUDED = 2


@dataclass(frozen=True, kw_only=True)
class Method:
    """How words are credited.

    Attributes:
        credit: A batch and options in, the credit of each word out, and in a last column that of special tokens; with
            the change that it should add up to, where the method knows it: else it is the one from no word at all to
            the text. None: the scores are drawn, without a look at the module.
        about: What the scores mean, for readers.
        adds_up: Whether the credits add up to the change of the score: the better, the more `points` are taken; by
            `construction`, whatever they are worth; in `principle`, as far as the method holds; or `not` at all.
        takes: The names of the options that only some methods have a use for.
        signed: Whether scores above 0 speak for the target and those below against it; else all say how much.
        together: How many sequences one text puts through the module at once; None: as many as there is room for, so
            that it is credited in a batch of its own.
    """

    credit: Callable[[Batch, Options], Credit | Accounted] | None
    about: str
    adds_up: Literal["points", "construction", "principle", "not"] = "not"
    takes: frozenset[str] = frozenset()
    signed: bool = True
    together: int | None = 1


# Gradients


def saliency(batch: Batch, options: Options) -> Credit:
    """The absolute gradient of the score by each embedding, summed (Simonyan et al. 2014)."""
    return _at_embeddings(batch, ca.Saliency(batch.score_at))


def input_x_gradient(batch: Batch, options: Options) -> Credit:
    """Each embedding times its gradient (Shrikumar et al. 2016)."""
    return _at_embeddings(batch, ca.InputXGradient(batch.score_at))


def integrated_gradients(batch: Batch, options: Options) -> Accounted:
    """Gradients of the score integrated along the line from the baseline's embeddings to the text's.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1, with Captum's gradients at points
    that are chosen by the text: `path.Lines`.
    """
    credit, change = batch.between().integrated(tolerance=options.tolerance, max_points=options.max_steps)
    return batch.per_word(credit), change


def layer_integrated_gradients(batch: Batch, options: Options) -> Accounted:
    """Gradients integrated along the line between a layer's outputs for the baseline and for the text.

    All else that the model reads stays the text's: the scores add up to what the layer's outputs change.
    """
    way, half = _by_layer(batch, options.layer or "")
    (credit,), change = way.integrated(tolerance=options.tolerance, max_points=options.max_steps)
    return batch.per_word_of(half, credit), change


def deep_lift(batch: Batch, options: Options) -> Credit:
    """Differences to the baseline, passed back by DeepLIFT's rules where the model has modules that Captum knows.

    Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences". Elsewhere, as
    through attention and GELU, plain gradients take their place, so that the scores don't add up exactly.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hooks that Captum sets, and removes
        return _at_embeddings(batch, ca.DeepLift(_Scored(batch)), baselines=batch.baselines)


def gradient_shap(batch: Batch, options: Options) -> Credit:
    """Gradients at random points between baseline and text, times their difference (Lundberg and Lee 2017).

    One point is drawn from each of a number of equal parts of the way, and with it its mirror image within the part
    (Haber 1967, "A Modified Monte-Carlo Quadrature. II"): of points that are drawn from the whole way, many more are
    needed where the score is steep.
    """
    pairs = ((options.samples or _POINTS) + 1) // 2
    edges = torch.linspace(0, 1, pairs + 1)
    forwards = _drawn(batch, edges[:-1], edges[1:], options.seed)
    backwards = _drawn(batch, edges[1:], edges[:-1], options.seed)
    return (forwards - backwards) / 2


# Attention


def attention_rollout(batch: Batch, options: Options) -> Credit:
    """How attention passes from layer to layer from each word to where the score is read: `attention.rollout`."""
    return rollout(batch)


def attention(batch: Batch, options: Options) -> Credit:
    """Where one layer's heads look, or one of them: `attention.raw`."""
    return raw(batch, options.layer, options.head)


# Words that are there or not


def feature_ablation(game: Game, options: Options) -> Float[Tensor, " words"]:
    """What the score loses without each word alone."""
    return _of_words(game, ca.FeatureAblation(game.score), perturbations_per_eval=game.readings[0].rows)


def occlusion(game: Game, options: Options) -> Float[Tensor, " words"]:
    """What the score loses without each word and its neighbour, the mean over both (Zeiler and Fergus 2014)."""
    window = (min(_OCCLUDED, game.words),)
    rows = game.readings[0].rows
    return _of_words(game, ca.Occlusion(game.score), sliding_window_shapes=window, perturbations_per_eval=rows)


def shapley_value_sampling(game: Game, options: Options) -> Float[Tensor, " words"]:
    """What each word adds to those before it, the mean over random orders (Castro et al. 2009).

    Each order is taken forwards and backwards: what two words do together then cancels out of the error (Mitchell et
    al. 2022, "Sampling Permutations for Shapley Value Estimation", section 4.1).
    """
    method = ca.ShapleyValueSampling(game.score)
    method.permutation_generator = _forwards_and_backwards
    rows = game.readings[0].rows
    return _of_words(game, method, n_samples=options.samples or _ORDERS, perturbations_per_eval=rows)


def kernel_shap(game: Game, options: Options) -> Float[Tensor, " words"]:
    """Shapley values by a weighted regression over random coalitions (Lundberg and Lee 2017).

    Each coalition is followed by its complement (Covert and Lee 2021, "Improving KernelSHAP", section 3.2).
    """
    if game.words < 2:
        return feature_ablation(game, options)
    method = ca.KernelShap(game.score)
    method.perturb_func = _with_complements(method.perturb_func)
    return _of_words(game, method, **_draws(game, options))


def lime(game: Game, options: Options) -> Float[Tensor, " words"]:
    """The weights of a linear model fitted around the text (Ribeiro et al. 2016), by least squares, unpenalised.

    Texts are drawn with their complements, as for `kernel_shap`.
    """
    method = ca.Lime(game.score, interpretable_model=SkLearnLinearRegression())
    method.perturb_func = _with_complements(method.perturb_func)
    return _of_words(game, method, **_draws(game, options))


def _by_game(play: Callable[[Game, Options], Float[Tensor, " words"]]) -> Callable[[Batch, Options], Credit]:
    """Let a method that takes a game take a batch of one."""

    def credit(batch: Batch, options: Options) -> Credit:
        game, found = Game([batch]), torch.zeros(1, batch.words + 1)
        if game.words:
            with _seeded(batch, options.seed):
                found[0, :-1] = play(game, options).float()
        return found

    return credit


_SAMPLES, _LAYER, _HEAD = frozenset({"samples"}), frozenset({"layer"}), frozenset({"head"})

METHODS: dict[str, Method] = {
    "integrated_gradients": Method(
        credit=integrated_gradients,
        about="How far each word moves the score on the way from a blank text to this one.",
        adds_up="points",
        together=FIRST_POINTS,
    ),
    "layer_integrated_gradients": Method(
        credit=layer_integrated_gradients,
        about="How far what a deeper layer makes of each word moves the score, on the way from what it makes of none.",
        adds_up="points",
        takes=_LAYER,
        together=FIRST_POINTS,
    ),
    "saliency": Method(
        credit=saliency, about="How much the score would react to a small change of each word; unsigned.", signed=False
    ),
    "input_x_gradient": Method(credit=input_x_gradient, about="Each word times the score's reaction to it."),
    "deep_lift": Method(
        credit=deep_lift,
        about="The difference to a blank text, passed back layer by layer.",
        adds_up="principle",
        together=2,
    ),
    "gradient_shap": Method(
        credit=gradient_shap,
        about="Integrated gradients at random points of the way.",
        adds_up="principle",
        takes=_SAMPLES,
        together=None,
    ),
    "feature_ablation": Method(
        credit=_by_game(feature_ablation), about="What the score loses without the word.", together=None
    ),
    "occlusion": Method(
        credit=_by_game(occlusion), about="What the score loses without the word and its neighbour.", together=None
    ),
    "shapley_value_sampling": Method(
        credit=_by_game(shapley_value_sampling),
        about="The word's fair share of the score, the mean over random orders.",
        adds_up="construction",
        takes=_SAMPLES,
        together=None,
    ),
    "kernel_shap": Method(
        credit=_by_game(kernel_shap),
        about="The word's fair share of the score, by a regression.",
        adds_up="construction",
        takes=_SAMPLES,
        together=None,
    ),
    "lime": Method(
        credit=_by_game(lime),
        about="The word's weight in a simple model around this text.",
        takes=_SAMPLES,
        together=None,
    ),
    "attention_rollout": Method(
        credit=attention_rollout,
        about="Where attention goes, not what it carries: a look inside, and no explanation by itself.",
        signed=False,
    ),
    "attention": Method(
        credit=attention,
        about="Where one layer's attention looks, not what it carries: a look inside, and no explanation by itself.",
        takes=_LAYER | _HEAD,
        signed=False,
    ),
    RANDOM: Method(credit=None, about="Drawn at random: no explanation, but the floor for all others."),
}


def methods_of(names: Sequence[str], options: Options) -> list[Method]:
    """Return methods by their names.

    Raises:
        ConfigError: There is no such method, or an option is missing, or none of them has a use for it.
    """
    found = [METHODS[known_name(name, METHODS, "method")] for name in names]
    if options.layer is None and "layer_integrated_gradients" in names:
        mend = "name one, such as model.bert.encoder.layer.3"
        raise ConfigError("layer_integrated_gradients needs a layer", where="layer", mend=mend)
    for option in sorted(_LAYER | _HEAD | _SAMPLES):
        if getattr(options, option) is not None and not any(option in method.takes for method in found):
            such = [name for name, method in METHODS.items() if option in method.takes]
            problem = f"{' and '.join(names)} has no use for {option}"
            raise ConfigError(problem, where=option, mend=f"leave it out, or choose {' or '.join(such)}")
    return found


def _at_embeddings(batch: Batch, captum: Any, **options: Any) -> Credit:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
        found = captum.attribute(batch.embeddings, additional_forward_args=batch.fixed, **options)
    return batch.per_word([credit.sum(-1) for credit in found]).detach()


def _drawn(
    batch: Batch, begin: Float[Tensor, " parts"], end: Float[Tensor, " parts"], seed: int
) -> Float[Tensor, "1 words_and_rest"]:
    """Return the credit of a batch of one by a point drawn from each part of the way, as many at once as there is room.

    The same seed draws the same points however many go together, and their mirror images where the parts are reversed.
    """
    method = InputBaselineXGradient(batch.score_at)
    credit = torch.zeros(1, batch.words + 1)
    with _seeded(batch, seed):
        for first, last in zip(begin.split(batch.rows), end.split(batch.rows), strict=True):
            found = method.attribute(
                _between(batch, last),
                baselines=_between(batch, first),
                additional_forward_args=tuple(each.expand(len(first), *each.shape[1:]) for each in batch.fixed),
            )
            credit += batch.per_word([each.sum((0, 2)).unsqueeze(0) for each in found]).detach().cpu()
    return credit


def _between(batch: Batch, shares: Float[Tensor, " parts"]) -> tuple[Float[Tensor, "parts _ hidden"], ...]:
    """Return the embeddings of a batch of one at shares of the way from the baseline to the text."""
    sides = zip(batch.baselines, batch.embeddings, strict=True)
    return tuple(torch.lerp(begin, end, shares.to(end)[:, None, None]) for begin, end in sides)


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


def _draws(game: Game, options: Options) -> dict[str, int]:
    """Return enough coalitions for least squares to be stable."""
    enough = 2**_FEW_WORDS if game.words <= _FEW_WORDS else max(2**_FEW_WORDS, 24 * game.words)
    if options.samples is not None and options.samples < _SAMPLES_PER_WORD * game.words:
        rank_zero_warn(
            f"samples={options.samples} is too few for texts of {game.words} words: their scores hang on the seed more"
            f" than on the model; leave samples out, which takes {enough}, or give {_SAMPLES_PER_WORD} a word at least"
        )
    return {"n_samples": options.samples or enough, "perturbations_per_eval": game.readings[0].rows}


def _by_layer(batch: Batch, name: str) -> tuple[Lines, int]:
    """Return the way by a layer of this name, and which embedding layer's tokens it gives one vector each for.

    Raises:
        ConfigError: There is none, or it gives no such vectors, or is where integration begins.
    """
    known = {path: part for path, part in batch.module.named_modules() if path}  # type: ignore[attr-defined]
    such = f"name one, such as {next((path for path in known if path[-1].isdigit()), next(iter(known)))}"
    if name not in known:
        raise ConfigError(f"the model has no layer {name!r}", where="layer", mend=did_you_mean(name, known) or such)
    half = _half(known, batch.embedding_layers, name)
    way = None if half is None else batch.between_outputs(known[name], half)
    if half is None or way is None:
        raise ConfigError(f"{name} doesn't give one vector for each token", where="layer", mend=such)
    if (calls := batch.calls(known[name])) > 1:
        raise ConfigError(
            f"{name} is called {calls} times in a pass", where="layer", mend="name one that is called once"
        )
    return way, half


def _half(known: Mapping[str, nn.Module], embedding_layers: Sequence[nn.Module], name: str) -> int | None:
    """Return which half of a model a part belongs to, encoder or decoder, by the embedding layer within it."""
    if len(embedding_layers) == 1:
        return 0
    paths = [next(path for path, part in known.items() if part is layer).split(".") for layer in embedding_layers]
    shared = next(i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    parts = name.split(".")
    return next((i for i, path in enumerate(paths) if parts[: shared + 1] == path[: shared + 1]), None)


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
