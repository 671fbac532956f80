"""From a backbone string to configuration and weights."""

import pickle
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lit_nlp.checkpoints import SECTION, read_checkpoint, unpack_config
from lit_nlp.errors import BackboneError
from lit_nlp.pretrained import Location, locate_backbone, unloadable

_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def load_config(backbone: str, **changes: Any) -> PreTrainedConfig:
    """Return the backbone's configuration, with `changes` to it.

    Raises:
        BackboneError: It can't be found or read.
    """
    location = locate_backbone(backbone)
    if location.is_checkpoint:
        config = unpack_config(read_checkpoint(location.path)[SECTION])
        config.update(changes)
        return config
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(**location.arguments, **changes))
    except _LOADING_ERRORS as error:
        raise unloadable(backbone, error) from error


def load_model(
    backbone: str, auto_class: Any, config: PreTrainedConfig, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Return the backbone in float32 under the head that `auto_class` gives it, in training mode.

    The head is new where the backbone has none of its own in the right shape.

    Args:
        auto_class: One of transformers' auto classes, such as `AutoModelForSequenceClassification`.
        attn_implementation: `sdpa`, `eager`, …; None: transformers' choice.

    Raises:
        BackboneError: The weights can't be loaded, don't fit the architecture, or have no such head.
    """
    location = locate_backbone(backbone)
    chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        if location.is_checkpoint:
            model = auto_class.from_config(config, dtype=torch.float32, **chosen)
            _load_fitting(model, read_checkpoint(location.path)["state_dict"])
        else:
            model = _from_pretrained(location, auto_class, config, chosen)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            "its weights hold Python objects, which are not loaded because they can run code",
            where=f"backbone {backbone}",
            mend="use one with model.safetensors",
        ) from error
    except _LOADING_ERRORS as error:
        raise unloadable(backbone, error) from error
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
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, info = auto_class.from_pretrained(
            **location.arguments,
            **chosen,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
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
