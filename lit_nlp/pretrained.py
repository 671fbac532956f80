"""Where a backbone string points, and the tokenizer that lies there.

A backbone is one string: a hub id, a folder, ``package:name/folder``, a GGUF file (a path or inside
a package), a checkpoint of ours, or ``scratch:`` with a configuration.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lit_nlp import packages, scratch
from lit_nlp.checkpoints import SECTION, SUFFIX, read_checkpoint, unpack_config, unpack_tokenizer
from lit_nlp.errors import BackboneError, first_line

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Location:
    """A backbone string, resolved.

    Attributes:
        backbone: The string as the user gave it, for messages.
        path: A folder or a hub id, as `from_pretrained` takes it; for a checkpoint, its file.
        gguf_file: The file's name inside the folder, for a GGUF backbone.
    """

    backbone: str
    path: str
    gguf_file: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether a checkpoint of ours is the backbone."""
        return self.path.endswith(SUFFIX)

    @property
    def is_scratch(self) -> bool:
        """Whether the weights are random."""
        return self.backbone.startswith(scratch.PREFIX)

    @property
    def arguments(self) -> dict[str, str]:
        """The keyword arguments that every `from_pretrained` needs for it."""
        named = {"pretrained_model_name_or_path": self.path}
        return named | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def locate_backbone(backbone: str) -> Location:
    """Resolve a backbone string without loading anything.

    Raises:
        BackboneError: It names a package, folder or file that isn't there.
    """
    if backbone.startswith(scratch.PREFIX):
        return Location(backbone, backbone.removeprefix(scratch.PREFIX))
    path = str(Path(backbone).expanduser()) if backbone.startswith("~") else backbone
    if backbone.startswith(packages.PREFIX):
        path = str(packages.locate(backbone, BackboneError))
    elif not Path(path).exists() and (
        backbone.startswith((".", "/", "~")) or backbone.count("/") > 1 or Path(backbone).suffix in (SUFFIX, ".gguf")
    ):
        raise BackboneError(
            "there is no such folder or file",
            where=f"backbone {backbone}",
            mend="give a folder, a hub id, or package:name/folder",
        )
    if path.endswith(".gguf"):
        return Location(backbone, str(Path(path).parent), Path(path).name)
    return Location(backbone, path)


def unloadable(location: Location, error: Exception) -> BackboneError:
    """Return the one-line error for a backbone that transformers could not load."""
    problem, where = first_line(error), f"backbone {location.backbone}"
    if "Unrecognized configuration class" in problem:
        kind = "its architecture has no head for this task"
        return BackboneError(kind, where=where, mend="see the README for which backbones do what")
    if location.is_scratch:
        mend = "check its configuration"
    elif Path(location.path).exists():
        mend = "check that it is whole: config.json, the weights and the tokenizer's files; or give another"
    else:
        mend = "check the name and the network, or give a local folder or package:name/folder"
    return BackboneError(f"it can't be loaded ({type(error).__name__}: {problem})", where=where, mend=mend)


def load_config(backbone: str, **changes: Any) -> PreTrainedConfig:
    """Return the backbone's configuration, with `changes` to it.

    Raises:
        BackboneError: It can't be found or read.
    """
    location = locate_backbone(backbone)
    if location.is_scratch:
        config = scratch.read_config(backbone)
        config.update(changes)
        return config
    if location.is_checkpoint:
        config = unpack_config(read_checkpoint(location.path)[SECTION])
        config.update(changes)
        return config
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(**location.arguments, **changes))
    except LOADING_ERRORS as error:
        raise unloadable(location, error) from error


def load_tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """Return the backbone's tokenizer, padding and truncating on the right.

    A tokenizer without a padding token (most decoders') pads with its end-of-text token; the
    attention mask, not the token, tells padding from text.

    Raises:
        BackboneError: The tokenizer can't be loaded, knows no words, or has neither token.
    """
    location = locate_backbone(backbone)
    if location.is_scratch and not scratch.has_tokenizer(backbone):
        raise BackboneError(
            "it has no tokenizer yet",
            where=f"backbone {backbone}",
            mend="give it to a data module first, and that one's `backbone` to the module",
        )
    if location.is_checkpoint:
        tokenizer = unpack_tokenizer(read_checkpoint(location.path)[SECTION])
    else:
        try:
            tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(**location.arguments))
        except Exception as error:  # the tokenizers library raises no narrower one
            raise unloadable(location, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # What transformers makes of a folder without a tokenizer's files; it would read every word as unknown.
        raise BackboneError(
            "its tokenizer knows no words",
            where=f"backbone {backbone}",
            mend="put the tokenizer's files, such as tokenizer.json, beside the weights",
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BackboneError(
                "the tokenizer has neither a padding nor an end-of-text token",
                where=f"backbone {backbone}",
                mend="add a pad_token to its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
