"""From a backbone string to a model with its weights."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lit_nlp.checkpoints import SECTION, read_checkpoint
from lit_nlp.errors import BackboneError, ConfigError, first_line
from lit_nlp.pretrained import LOADING_ERRORS, Location, locate_backbone, unloadable


def load_model(
    backbone: str, auto_class: Any, config: PreTrainedConfig, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Return the backbone in float32 under the head that `auto_class` gives it, in training mode.

    The head is new where the backbone has none of its own in the right shape. For
    `AutoModelForSeq2SeqLM` an encoder becomes both halves of an encoder-decoder, whose cross-attention
    is new (Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks").

    Args:
        auto_class: One of transformers' auto classes, such as `AutoModelForSequenceClassification`.
        attn_implementation: `sdpa`, `eager`, …; None: transformers' choice.

    Raises:
        BackboneError: The weights can't be loaded, don't fit the architecture, or have no such head.
        ConfigError: A package is missing that `attn_implementation` needs.
    """
    location = locate_backbone(backbone)
    chosen: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if auto_class is AutoModelForSeq2SeqLM and location.is_checkpoint and not config.is_encoder_decoder:
        raise BackboneError(
            "an encoder's checkpoint can't become an encoder-decoder",
            where=f"backbone {backbone}",
            mend="give the folder backbone/ that its pre-training wrote, or the backbone that it came from",
        )
    doubled = auto_class is AutoModelForSeq2SeqLM and not config.is_encoder_decoder
    try:
        if doubled and not location.is_scratch:
            model = _warm_started(location, config, chosen)
        elif location.is_scratch:
            model = auto_class.from_config(_both_halves(config) if doubled else config, dtype=torch.float32, **chosen)
        elif location.is_checkpoint:
            model = auto_class.from_config(config, dtype=torch.float32, **chosen)
            checkpoint = read_checkpoint(location.path)
            _load_fitting(model, checkpoint["state_dict"])
            if "generation_config" in checkpoint[SECTION]:
                model.generation_config = GenerationConfig.from_dict(checkpoint[SECTION]["generation_config"])
        else:
            model = _from_pretrained(location, auto_class, config, chosen)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            "its weights hold Python objects, which are not loaded because they can run code",
            where=f"backbone {backbone}",
            mend="use one with model.safetensors",
        ) from error
    except LOADING_ERRORS as error:
        if isinstance(error, ImportError) and attn_implementation not in (None, "eager", "sdpa"):
            problem = first_line(error).rstrip(".")
            raise ConfigError(problem, where="model.attn_implementation", mend="choose another") from error
        raise unloadable(location, error) from error
    if isinstance(model, EncoderDecoderModel) and getattr(model.encoder, "pooler", None) is not None:
        model.encoder.pooler = None  # no decoder reads it, and a parameter without a gradient stops DDP
    for part in model.modules():
        if type(part).__name__.endswith("SinusoidalPositionalEmbedding"):
            part.requires_grad_(False)  # from_pretrained forgets it, and a parameter without a gradient stops DDP
    # from_pretrained returns a model in eval mode, and Lightning keeps the mode that it finds: without
    # this, fine-tuning would run without dropout.
    return cast(PreTrainedModel, model.train())


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backbone: str) -> None:
    """Make sure that every token of the tokenizer has an embedding.

    Raises:
        BackboneError: The tokenizer has more tokens than the model.
    """
    known = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > known:
        raise BackboneError(
            f"its tokenizer has {len(tokenizer)} tokens, its model only {known}",
            where=f"backbone {backbone}",
            mend="use the tokenizer that the model was trained with",
        )


def _from_pretrained(location: Location, auto_class: Any, config: PreTrainedConfig, chosen: dict[str, Any]) -> Any:
    if location.gguf_file:
        # Else transformers keeps weights packed, which can't be trained, where a kernel multiplies them.
        chosen = chosen | {"quantization_config": GgufConfig(dequantize=True)}
    with _quiet():
        model, info = auto_class.from_pretrained(
            **location.arguments,
            **chosen,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        if not location.gguf_file:
            raise BackboneError(
                "its weights are quantised, and can't be trained",
                where=f"backbone {location.backbone}",
                mend="give the one that it was made from",
            )
        quantizer.remove_quantization_config(model)  # it holds what no checkpoint may, and forbids to save weights
    embeddings = {name for name, module in model.named_modules() if module is model.get_input_embeddings()}
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    # A pooler may be new, as the head is; embeddings and layers with random weights would only look pretrained.
    lost = [key for key in info["missing_keys"] if _inside(key, embeddings | layers)]
    lost += [str(key[0]) for key in info["mismatched_keys"] if str(key[0]).startswith(f"{model.base_model_prefix}.")]
    if lost:
        raise BackboneError(
            f"its weights don't fit the architecture: {min(lost)} is missing or of another shape",
            where=f"backbone {location.backbone}",
            mend="check that config.json and the weights belong together",
        )
    return model


def _warm_started(location: Location, config: PreTrainedConfig, chosen: dict[str, Any]) -> EncoderDecoderModel:
    both = _both_halves(config)
    encoder = _from_pretrained(location, AutoModel, cast(PreTrainedConfig, both.encoder), chosen)
    with _quiet():
        decoder = AutoModelForCausalLM.from_pretrained(
            **location.arguments, **chosen, config=both.decoder, dtype=torch.float32
        )
        return EncoderDecoderModel(encoder=encoder, decoder=decoder, config=both)


def _both_halves(config: PreTrainedConfig) -> EncoderDecoderConfig:
    decoder = copy.deepcopy(config)
    decoder.is_decoder = decoder.add_cross_attention = True
    both = EncoderDecoderConfig(encoder=config.to_dict(), decoder=decoder.to_dict())
    both.pad_token_id, both.vocab_size = config.pad_token_id, config.vocab_size
    return both


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out transformers' report of new weights: that the head is new is meant."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _inside(name: str, modules: set[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _load_fitting(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what has the right name and shape from a module's state, whose names begin with ``model.``."""
    own = model.state_dict()
    found = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    fitting = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise RuntimeError("the checkpoint holds no weights of this architecture")
    model.load_state_dict(fitting, strict=False)
