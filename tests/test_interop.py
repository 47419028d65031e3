"""Prompts of other libraries: what PEFT wrote answers the same here, what is exported answers the same in PEFT."""

import json
import pickle

import numpy
import pytest
import tiny
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

import dplearn as dp
from dplearn import checkpoint

LENGTH = 3
RANDOM = torch.Generator().manual_seed(0)  # of its own: the small models seed torch's
LABELS = torch.tensor([[5, 6], [7, 8], [9, 10]])


BACKBONES = {
    "t5": (tiny.t5, "SEQ_2_SEQ_LM"),
    "bart": (tiny.bart, "SEQ_2_SEQ_LM"),
    "gpt2": (tiny.gpt2, "CAUSAL_LM"),
    "llama": (tiny.llama, "CAUSAL_LM"),
}


def is_causal(kind):
    return BACKBONES[kind][1] == "CAUSAL_LM"


@pytest.fixture(params=BACKBONES)
def kind(request):
    return request.param


def of_peft(kind, **options):
    """A prompt of PEFT with random rows, ready to answer."""
    make, task = BACKBONES[kind]
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH, **options)
    theirs = get_peft_model(make(), config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.normal_()
    return theirs


def ours(kind, **options):
    """A prompt of this package with random rows, in float32 as PEFT stores them."""
    config = dp.PromptConfig(**({"length": LENGTH} | options))
    vectors = torch.randn(*config.shape, tiny.WIDTH, generator=RANDOM)
    return dp.prompted(BACKBONES[kind][0](), config, vectors=vectors)


def logits(model, kind):
    """Logits of the real tokens of a batch that is padded on the right, without rows of the prompt, and the loss."""
    ids, mask = tiny.batch([6, 3, 8], eos=not is_causal(kind))
    if not is_causal(kind):
        output = model(input_ids=ids, attention_mask=mask, labels=LABELS)
        return output.logits, output.loss
    # PEFT also scores the first token, which the prompt alone predicts; transformers never does.
    labels = ids.masked_fill(mask.cumsum(1) * mask <= 1, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    found = output.logits if isinstance(model, dp.PromptedModel) else output.logits[:, LENGTH:]
    return found[mask.bool()], output.loss


def assert_same_answers(one, other, kind):
    (found, loss), (expected, their_loss) = logits(one, kind), logits(other, kind)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # transformers computes the loss of a decoder-only model in float32
    torch.testing.assert_close(loss, their_loss, rtol=1e-6 if is_causal(kind) else 1e-10, atol=1e-10)


# --- from PEFT ---


def test_what_peft_saved_gives_the_same_logits_and_loss_here(kind, tmp_path):
    theirs = of_peft(kind)
    theirs.save_pretrained(tmp_path)
    model = dp.import_peft(tmp_path, BACKBONES[kind][0]())
    assert model.prompt_config == dp.PromptConfig(length=LENGTH, position="prefix")
    assert_same_answers(model, theirs, kind)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # said by PEFT of itself
@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_what_peft_saved_generates_the_same_tokens_here(kind, tmp_path):
    theirs = of_peft(kind)
    theirs.save_pretrained(tmp_path)
    model = dp.import_peft(tmp_path, BACKBONES[kind][0]())
    ids, mask = tiny.batch([6, 6, 6], eos=False)  # PEFT wants no padding on the left, GPT-2 none on the right
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=tiny.PAD)
    options |= dict(return_dict_in_generate=True, output_logits=True)
    found = model.generate(ids, mask, **options)
    expected = theirs.generate(input_ids=ids, attention_mask=mask, **options)
    tokens = expected.sequences
    if is_causal(kind):
        tokens = tokens[:, ids.shape[1] :]  # PEFT repeats the input
    assert found.sequences.tolist() == tokens.tolist() and len(found.logits) > 1
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)  # kept in float32


@pytest.mark.parametrize(("submodules", "rows"), [(None, 2 * LENGTH), (2, 2 * LENGTH), (1, LENGTH)])
def test_only_the_rows_that_peft_reads_are_imported(submodules, rows, tmp_path):
    of_peft("t5", num_transformer_submodules=submodules).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert len(stored) == rows
    assert torch.equal(dp.import_peft(tmp_path, tiny.t5()).prompt.vectors, stored[:LENGTH])


def test_an_imported_prompt_can_be_trained_and_saved(tmp_path):
    of_peft("t5").save_pretrained(tmp_path / "peft")
    model = dp.import_peft(tmp_path / "peft", tiny.t5()).train()
    before = model.prompt.vectors.detach().clone()
    model(*tiny.batch([6, 3, 8]), labels=LABELS).loss.backward()
    torch.optim.SGD(model.trainable_parameters().values(), lr=1.0).step()
    model.save_pretrained(tmp_path / "ours")
    again = dp.from_pretrained(tmp_path / "ours", tiny.t5())
    assert torch.equal(again.prompt.vectors, model.prompt.vectors)
    assert ((again.prompt.vectors - before).abs().sum(1) > 0).all()


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value != "drop"}))


def store(folder, **tensors):
    save_file(tensors, folder / "adapter_model.safetensors")


def into_a_pickle(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")


def only_a_pickle(folder):
    into_a_pickle(folder)
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize("value", [None, "drop"])
def test_a_file_that_does_not_say_how_many_halves_it_has_is_read_as_peft_reads_it(kind, value, tmp_path):
    theirs = of_peft(kind)
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, num_transformer_submodules=value)
    again = PeftModel.from_pretrained(BACKBONES[kind][0](), tmp_path)
    assert_same_answers(dp.import_peft(tmp_path, BACKBONES[kind][0]()), again, kind)


BAD_FILES = {
    "no config": (
        lambda f: (f / "adapter_config.json").unlink(),
        FileNotFoundError,
        "holds no adapter_config.json, expected a folder written by PEFT",
    ),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        FileNotFoundError,
        "holds no adapter_model.safetensors, expected the weights that belong to adapter_config.json",
    ),
    "weights in a pickle": (
        into_a_pickle,
        ValueError,
        "holds 'adapter_model.bin' and no adapter_model.safetensors: pickles are never loaded",
    ),
    "a pickle alone": (
        only_a_pickle,
        ValueError,
        "holds 'adapter_model.bin' and no adapter_config.json: pickles are never loaded",
    ),
    "truncated config": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": '),
        ValueError,
        "adapter_config.json is damaged, expected JSON",
    ),
    "a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        ValueError,
        "adapter_config.json holds a list, expected a JSON object",
    ),
    "no type": (lambda f: edit(f, peft_type="drop"), ValueError, "peft_type=None, expected 'PROMPT_TUNING'"),
    "no number of tokens": (
        lambda f: edit(f, num_virtual_tokens="drop"),
        ValueError,
        "num_virtual_tokens=None, expected an integer of at least 1",
    ),
    "no token": (lambda f: edit(f, num_virtual_tokens=0), ValueError, "num_virtual_tokens=0, expected"),
    "half a submodule": (
        lambda f: edit(f, num_transformer_submodules=0.5),
        ValueError,
        "num_transformer_submodules=0.5, expected an integer",
    ),
    "more tokens than rows": (
        lambda f: edit(f, num_virtual_tokens=4),
        ValueError,
        r"expected shape \(8, 16\), found \(6, 16\)",
    ),
    "half of the rows": (
        lambda f: store(f, prompt_embeddings=torch.zeros(3, 16)),
        ValueError,
        r"'prompt_embeddings' .* expected shape \(6, 16\), found \(3, 16\)",
    ),
    "a wider model's": (
        lambda f: store(f, prompt_embeddings=torch.zeros(6, 32)),
        ValueError,
        r"expected shape \(6, 16\), found \(6, 32\)",
    ),
    "another key": (
        lambda f: store(f, embeddings=torch.zeros(6, 16)),
        ValueError,
        "holds 'embeddings' besides 'prompt_embeddings', expected a prompt alone",
    ),
    "no tensor": (store, ValueError, "tensor 'prompt_embeddings' .* found no such tensor"),
    "integers": (
        lambda f: store(f, prompt_embeddings=torch.zeros(6, 16, dtype=torch.int64)),
        ValueError,
        "expected floating point, found torch.int64",
    ),
    "not a number": (
        lambda f: store(f, prompt_embeddings=torch.full((6, 16), torch.nan)),
        ValueError,
        "holds numbers that are not finite",
    ),
    "truncated weights": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0"),
        ValueError,
        "adapter_model.safetensors is damaged, expected safetensors",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_prompt_are_refused_by_name(case, tmp_path):
    spoil, error, message = BAD_FILES[case]
    of_peft("t5").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        dp.import_peft(tmp_path, tiny.t5())


OTHER_METHODS = {
    "LORA": (tiny.t5, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q"])),
    "P_TUNING": (tiny.t5, PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)),
    "PREFIX_TUNING": (tiny.gpt2, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods_of_peft_are_refused_by_name(method, tmp_path):
    make, config = OTHER_METHODS[method]
    get_peft_model(make(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"peft_type='{method}', expected 'PROMPT_TUNING'"):
        dp.import_peft(tmp_path, make())


def test_a_prompt_of_peft_that_came_with_a_trained_classifier_is_refused(tmp_path):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    get_peft_model(tiny.bert(BertForSequenceClassification), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds 'base_model.classifier.bias' besides 'prompt_embeddings'"):
        dp.import_peft(tmp_path, tiny.bert(BertForSequenceClassification))


def test_a_backbone_that_is_refused_stays_as_it_was(tmp_path):
    of_peft("t5").save_pretrained(tmp_path)
    edit(tmp_path, peft_type="LORA")
    backbone = tiny.t5()
    with pytest.raises(ValueError, match="LORA"):
        dp.import_peft(tmp_path, backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


# --- to PEFT ---


@pytest.mark.parametrize("position", ["prefix", LENGTH])
def test_an_exported_prompt_gives_the_same_logits_and_loss_in_peft(kind, position, tmp_path):
    model = ours(kind, position=position)
    dp.export_peft(model, tmp_path)
    theirs = PeftModel.from_pretrained(BACKBONES[kind][0](), tmp_path)
    assert_same_answers(theirs, model, kind)
    assert theirs.prompt_encoder["default"].embedding.weight.shape == (LENGTH, tiny.WIDTH)


def test_peft_takes_an_exported_prompt_beside_one_of_its_own(tmp_path):
    model = ours("t5")
    dp.export_peft(model, tmp_path)
    theirs = of_peft("t5")  # of two halves
    theirs.load_adapter(tmp_path, "exported")
    theirs.set_adapter("exported")
    assert_same_answers(theirs, model, "t5")


def test_exported_files_are_those_of_peft(kind, tmp_path):
    dp.export_peft(ours(kind), tmp_path / "ours")
    of_peft(kind, num_transformer_submodules=1).save_pretrained(tmp_path / "theirs")
    written = {path.name for path in (tmp_path / "ours").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    found, expected = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    assert {key: expected.get(key, "unknown key") for key in found} == found
    mine, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {name: tensor.shape for name, tensor in mine.items()} == {
        name: tensor.shape for name, tensor in other.items()
    }


def test_export_and_import_restore_every_bit(kind, tmp_path):
    model = ours(kind)
    dp.export_peft(model, tmp_path)
    again = dp.import_peft(tmp_path, BACKBONES[kind][0]())
    assert torch.equal(again.prompt.vectors, model.prompt.vectors)


def test_the_prompt_in_use_is_exported(tmp_path):
    model = ours("t5")
    model.add_prompt("other", dp.PromptConfig(length=2), torch.randn(2, tiny.WIDTH))
    model.use_prompt("other")
    dp.export_peft(model, tmp_path)
    assert torch.equal(dp.import_peft(tmp_path, tiny.t5()).prompt.vectors, model.prompt.vectors)


def test_the_name_of_the_backbone_is_recorded(tmp_path):
    model = ours("t5")
    model.backbone.name_or_path = "someone/some-t5"
    dp.export_peft(model, tmp_path)
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/some-t5"
    )


REFUSED = {
    "postfix": ({"position": "postfix"}, "position='postfix' cannot be exported to PEFT, expected 'prefix'"),
    "surround": ({"position": 1}, "position=1 cannot be exported to PEFT, expected 'prefix'"),
    "a position for the task": ({"position": "task"}, "position='task' cannot be exported"),
    "a position for each input": ({"position": "instance"}, "position='instance' cannot be exported"),
    "fewer vectors": ({"size": 2}, "size=2 cannot be exported to PEFT, expected 'full'"),
    "a size for the task": ({"size": "task"}, "size='task' cannot be exported"),
    "a size for each input": ({"size": "instance"}, "size='instance' cannot be exported"),
    "a pool for the task": ({"vector": "task"}, "vector='task' cannot be exported to PEFT, expected 'single'"),
    "a pool for each input": ({"vector": "instance"}, "vector='instance' cannot be exported"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_hold_is_refused_by_name_and_nothing_is_written(case, tmp_path):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        dp.export_peft(ours("t5", **options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_backbones_that_peft_reads_elsewhere_are_refused_by_name(tmp_path):
    model = dp.prompted(tiny.bert(BertForSequenceClassification), dp.PromptConfig(length=LENGTH))
    with pytest.raises(ValueError, match="backbone=BertForSequenceClassification cannot be exported to PEFT"):
        dp.export_peft(model, tmp_path / "new")
    model = dp.prompted(tiny.gpt2().transformer, dp.PromptConfig(length=LENGTH))
    with pytest.raises(ValueError, match="backbone=GPT2Model cannot be exported to PEFT"):
        dp.export_peft(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_vectors_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path):
    model = ours("t5")
    with torch.no_grad():
        model.prompt.vectors[0, 0] = torch.inf
    with pytest.raises(ValueError, match="tensor 'prompt_embeddings' cannot be exported to .* infinite"):
        dp.export_peft(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_export_names_the_backbone_where_others_know_it_and_no_path_of_this_machine(tmp_path):
    model = ours("t5")
    for name, expected in (
        ("google/flan-t5-small", "google/flan-t5-small"),
        (str(tmp_path), None),
        ("", None),
    ):
        model.backbone.name_or_path = name
        dp.export_peft(model, tmp_path / "new")
        document = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
        assert document["base_model_name_or_path"] == expected


def test_an_export_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".dplearn-0123456789abcdef.tmp").write_text("half")
    dp.export_peft(ours("t5"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("length", [LENGTH, 2])
def test_an_export_that_stops_leaves_the_old_one_the_new_one_or_none(length, tmp_path, monkeypatch):
    """Stop before each replacement of a file, over an older export of the same length and of another."""
    states, real = [], checkpoint.os.replace
    for stop in range(3):
        folder, old, new = tmp_path / str(stop), ours("t5"), ours("t5", length=length)
        dp.export_peft(old, folder)
        count = 0

        def replace(source, target, stop=stop):
            nonlocal count
            if count == stop:
                raise OSError("stopped")
            count += 1
            real(source, target)

        monkeypatch.setattr(checkpoint.os, "replace", replace)
        try:
            dp.export_peft(new, folder)
        except OSError as error:
            assert str(error) == "stopped"
        monkeypatch.setattr(checkpoint.os, "replace", real)
        assert not list(folder.glob("*.tmp")) + list(folder.glob(".*"))
        try:
            found = dp.import_peft(folder, tiny.t5()).prompt.vectors
        except FileNotFoundError:
            states.append("none")
            continue
        states += [
            name for name, model in (("old", old), ("new", new)) if torch.equal(found, model.prompt.vectors)
        ]
    assert states == (["old", "new", "new"] if length == LENGTH else ["none", "none", "new"])


# --- plain arrays ---


@pytest.mark.parametrize("position", ["prefix", "postfix", 1])
def test_an_array_is_concatenated_as_it_stands(position, tmp_path):
    array = numpy.random.randn(LENGTH, tiny.WIDTH)
    numpy.save(tmp_path / "prompt.npy", array)
    model = dp.import_npy(tmp_path / "prompt.npy", tiny.gpt2(), position=position)
    ids, _ = tiny.batch([5, 5, 5], eos=False)
    k = {"prefix": LENGTH, "postfix": 0}.get(position, position)
    before, after = (torch.from_numpy(part).expand(3, -1, -1) for part in (array[:k], array[k:]))
    embeds = torch.cat([before, model.backbone.transformer.wte(ids), after], 1)
    expected = model.backbone(inputs_embeds=embeds).logits[:, -1]
    torch.testing.assert_close(model(ids).logits[:, -1], expected, rtol=1e-10, atol=1e-10)


def test_an_array_is_a_prefix_unless_told_otherwise(tmp_path):
    numpy.save(tmp_path / "prompt.npy", numpy.ones((LENGTH, tiny.WIDTH)))
    assert dp.import_npy(tmp_path / "prompt.npy", tiny.t5()).prompt_config.position == "prefix"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("<f2", torch.float32), ("<f4", torch.float32), (">f4", torch.float32), ("<f8", torch.float64)],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_layout_keep_their_values(stored, expected, order, tmp_path):
    array = numpy.asarray(numpy.random.randn(LENGTH, tiny.WIDTH), dtype=stored, order=order)
    numpy.save(tmp_path / "prompt.npy", array)
    vectors = dp.import_npy(tmp_path / "prompt.npy", tiny.t5()).prompt.vectors
    assert vectors.dtype == expected and vectors.tolist() == array.tolist()


class Ran:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def array_of_objects(path):
    with path.open("wb") as file:
        numpy.lib.format.write_array(file, numpy.array([[Ran()]], dtype=object), allow_pickle=True)


BAD_ARRAYS = {
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Ran())), "is no .npy file .*pickles are never loaded"),
    "pickled objects": (array_of_objects, "is no .npy file .*pickles are never loaded"),
    "text": (lambda p: p.write_text("1.0 2.0"), "is no .npy file"),
    "an empty file": (lambda p: p.write_bytes(b""), "is no .npy file"),
    "a truncated file": (
        lambda p: (numpy.save(p, numpy.ones((3, 16))), p.write_bytes(p.read_bytes()[:-9])),
        "is no .npy file",
    ),
    "an archive": (
        lambda p: numpy.savez(p.open("wb"), a=numpy.ones((3, 16))),
        "is an archive of arrays, expected one array",
    ),
    "a row": (
        lambda p: numpy.save(p, numpy.ones(16)),
        r"holds an array of shape \(16,\), expected \(length, 16\)",
    ),
    "a pool": (
        lambda p: numpy.save(p, numpy.ones((2, 3, 16))),
        r"holds an array of shape \(2, 3, 16\), expected \(length, 16\)",
    ),
    "no row": (
        lambda p: numpy.save(p, numpy.ones((0, 16))),
        r"holds an array of shape \(0, 16\), expected \(length, 16\)",
    ),
    "a wider model's": (
        lambda p: numpy.save(p, numpy.ones((3, 32))),
        r"holds an array of shape \(3, 32\), expected \(length, 16\)",
    ),
    "integers": (
        lambda p: numpy.save(p, numpy.ones((3, 16), int)),
        "holds an array of dtype int64, expected float16, float32",
    ),
    "complex numbers": (
        lambda p: numpy.save(p, numpy.ones((3, 16), complex)),
        "holds an array of dtype complex128, expected",
    ),
    "infinity": (
        lambda p: numpy.save(p, numpy.full((3, 16), numpy.inf)),
        "holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_files_that_are_no_array_of_a_prompt_are_refused_by_name(case, tmp_path):
    write, message = BAD_ARRAYS[case]
    write(tmp_path / "prompt.npy")
    with pytest.raises(ValueError, match=f"prompt.npy {message}"):
        dp.import_npy(tmp_path / "prompt.npy", tiny.t5())


def test_other_bad_arguments_of_an_import_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npy"):
        dp.import_npy(tmp_path / "nothing.npy", tiny.t5())
    numpy.save(tmp_path / "prompt.npy", numpy.ones((3, 16)))
    with pytest.raises(ValueError, match="position=4 is outside 0..3"):
        dp.import_npy(tmp_path / "prompt.npy", tiny.t5(), position=4)
    with pytest.raises(TypeError, match="backbone=Linear cannot take a prompt"):
        dp.import_npy(tmp_path / "prompt.npy", torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="backbone=Linear cannot take a prompt"):
        dp.import_peft(tmp_path, torch.nn.Linear(2, 2))


def test_peft_is_not_imported_by_the_package():
    import inspect

    from dplearn import interop

    assert "import peft" not in inspect.getsource(interop) and "from peft" not in inspect.getsource(interop)
