"""What kind of transformer a configuration describes."""

from typing import Literal

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lit_nlp.errors import BackboneError

Architecture = Literal["encoder", "decoder", "encoder_decoder"]


def architecture(config: PreTrainedConfig) -> Architecture:
    """Return whether a model reads (encoder), writes (decoder), or does both in two stacks.

    Raises:
        BackboneError: transformers gives it no language-modelling head, masked or causal.
    """
    if config.is_encoder_decoder:
        return "encoder_decoder"
    if is_encoder(config):
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    raise BackboneError(
        f"{config.model_type} is neither an encoder, a decoder nor both", mend="choose another backbone"
    )


def is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a model was made to read, also where it can serve as a decoder, as BERT can."""
    return not config.is_encoder_decoder and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
