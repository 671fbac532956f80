"""Reading checkpoints safely, and the section that makes them need nothing beside them.

A checkpoint of ours is a Lightning checkpoint with one more section, `lit_nlp`: the backbone's
configuration as a dict and the tokenizer's files as text. With it the module is rebuilt offline,
after the backbone's folder is gone. Everything in it is a tensor or a JSON primitive, so that it
loads with ``weights_only=True``.
"""

import base64
import hashlib
import json
import pickle
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from lit_nlp.errors import CheckpointError
from lit_nlp.files import cache_folder

SECTION = "lit_nlp"
SUFFIX = ".ckpt"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the checkpoint at `path`; its tensors stay on disk until they are used.

    Only tensors and primitives are unpickled, and every byte is held against the file's own
    checksums, which `torch.load` doesn't do.

    Raises:
        CheckpointError: It is a URL, missing, damaged, holds code, or wasn't written by `lit_nlp`.
    """
    where = str(path)
    if "://" in where:
        raise CheckpointError(
            "a checkpoint is read from a local file only, not from a URL", where=where, mend="download it first"
        )
    if where and Path(path).is_dir():
        raise CheckpointError("this is a folder", where=where, mend="name a checkpoint in it, such as best.ckpt")
    if not Path(path).is_file():
        nearest = next((str(folder) for folder in Path(where).parents if folder.is_dir()), ".")
        mend = f"look into {'checkpoints' if nearest == '.' else nearest.rstrip('/')}/"
        raise CheckpointError("there is no such checkpoint file", where=where, mend=mend)
    stat = Path(path).stat()
    return dict(_read(where, stat.st_mtime_ns, stat.st_size))


# Data module and module each read configuration, tokenizer and weights; the file is checked once.
@lru_cache(maxsize=1)
def _read(where: str, _mtime_ns: int, _size: int) -> dict[str, Any]:
    damaged = CheckpointError(
        "the checkpoint is damaged", where=where, mend="take another one of the same run, such as last.ckpt"
    )
    try:
        with zipfile.ZipFile(where) as archive:
            if archive.testzip() is not None:
                raise damaged
        checkpoint = torch.load(where, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "the checkpoint holds Python objects, which are not loaded because they can run code",
            where=where,
            mend="use a checkpoint that lit-nlp wrote",
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        raise damaged from error
    if not isinstance(checkpoint, dict) or SECTION not in checkpoint:
        raise CheckpointError(
            "this file is no checkpoint of lit_nlp", where=where, mend="use one that `lit-nlp fit` wrote"
        )
    return checkpoint


def check_written_by(module: str, checkpoint: dict[str, Any], where: str) -> None:
    """Make sure that a module of this class wrote the checkpoint.

    Raises:
        CheckpointError: Another one did.
    """
    written_by = checkpoint[SECTION]["module"]
    if written_by != module:
        raise CheckpointError(
            f"it was written by {written_by}, not by {module}",
            where=where,
            mend=f"load it with {written_by}, or give it to {module} as the backbone",
        )


def pack_backbone(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, writing: GenerationConfig | None = None
) -> dict[str, Any]:
    """Return configuration, tokenizer, and how the model writes as JSON primitives, for the checkpoint's section."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {file.name: _as_text(file.read_bytes()) for file in Path(folder).iterdir() if file.is_file()}
    packed = {"config": config.to_diff_dict(), "model_type": config.model_type, "tokenizer": files}
    return packed | ({"generation_config": writing.to_diff_dict()} if writing is not None else {})


def unpack_config(section: dict[str, Any]) -> PreTrainedConfig:
    """Rebuild the backbone's configuration from a checkpoint's section."""
    return AutoConfig.for_model(**{**section["config"], "model_type": section["model_type"]})


def unpack_tokenizer(section: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Rebuild the tokenizer from a checkpoint's section.

    A slow one opens its files again when it is copied: those stay in the cache.
    """
    files: dict[str, str] = section["tokenizer"]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _read_tokenizer(Path(folder), files)
    if tokenizer.is_fast:
        return tokenizer
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
    return _read_tokenizer(cache_folder() / "tokenizers" / key, files)


def _read_tokenizer(folder: Path, files: dict[str, str]) -> PreTrainedTokenizerBase:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / Path(name).name).write_bytes(_as_bytes(text))
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def check_primitives(arguments: dict[str, Any], owner: str) -> None:
    """Refuse arguments that a checkpoint would save without a word and then fail to load.

    Raises:
        TypeError: One of them is neither None, bool, int, float, str, nor a list or dict of these.
    """
    for name, value in arguments.items():
        if not _is_primitive(value):
            raise TypeError(
                f"{owner}({name}=…) takes JSON primitives, so that its checkpoints load safely; got {type(value)}"
            )


def _is_primitive(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_primitive(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_primitive(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _as_text(content: bytes) -> str:
    try:
        return "text:" + content.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(content).decode("ascii")


def _as_bytes(text: str) -> bytes:
    kind, _, content = text.partition(":")
    return content.encode("utf-8") if kind == "text" else base64.b64decode(content)
