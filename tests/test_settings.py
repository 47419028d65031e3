"""The seal of a checkpoint's settings: every edit is noticed, what is meant can be sealed again, old ones have none."""

import hashlib
import json
import math

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import edit

import dplearn as dp
from dplearn import checkpoint, fits
from dplearn import settings as sealed

CONFIG = dp.PromptConfig(length=4, position="postfix", size=3, vector="task", pool_size=2, tasks=["a", "b"])


@pytest.fixture
def saved(tmp_path):
    dp.prompted(tiny.t5(dtype=torch.float32), CONFIG).save_pretrained(tmp_path)
    return tmp_path


def document_of(folder):
    return json.loads((folder / checkpoint.CONFIG).read_text())


@pytest.mark.parametrize("option", CONFIG.to_dict())
def test_a_checkpoint_without_one_of_its_options_is_refused_by_name(option, saved):
    """Deleting `position` made a prefix of a postfix, and so on for each option that has a default."""
    edit(saved, lambda document: document["prompt"].pop(option), sealed=False)
    with pytest.raises(ValueError, match=f"has lost the option '{option}', which it was written with"):
        checkpoint.read(saved)
    edit(saved, lambda document: None)  # a new seal does not bring it back
    with pytest.raises(ValueError, match=f"has lost the option '{option}'"):
        checkpoint.seal(saved)


EDITS = {
    "position": lambda d: d["prompt"].update(position="prefix"),
    "size": lambda d: d["prompt"].update(size="full"),
    "mixing": lambda d: d["prompt"].update(mixing="tanh"),
    "order of tasks": lambda d: d["prompt"].update(tasks=["b", "a"]),
    "temperature": lambda d: d["prompt"].update(temperature=2.0),
    "one more option": lambda d: d["prompt"].update(flavour="sweet"),
    "name of the backbone": lambda d: d["backbone"].update(name_or_path="t5-mini"),
    "class of the backbone": lambda d: d["backbone"].update({"class": "BartForConditionalGeneration"}),
    "width forgotten": lambda d: d["backbone"].pop("width"),
    "nothing about the backbone": lambda d: d.update(backbone={}),
    "another tensor file": lambda d: d["weights"].update(file="prompt-0.safetensors"),
    "another hash": lambda d: d["weights"].update(sha256="0" * 64),
    "another size": lambda d: d["weights"].update(bytes=1),
    "fewer sealed options": lambda d: (d["seal"]["options"].remove("size"), d["prompt"].pop("size")),
    "another seal": lambda d: d["seal"].update(sha256="0" * 64),
    "an older format": lambda d: d.update(format=2),
    "the format of parts": lambda d: d.update(format=3),
    "the version that wrote it": lambda d: d.update(dplearn_version="0.0.1"),
    "one more part": lambda d: d.update(note="mine"),
    "a fingerprint's number": lambda d: d["backbone"]["fingerprint"].update(another=[0.5]),
    "an integer as a real number": lambda d: d["prompt"].update(length=4.0),
    "a list for a number": lambda d: d["prompt"].update(size=[3]),
    "a value forgotten": lambda d: d["prompt"].update(head=None),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_is_refused_and_the_error_says_what_to_do(case, saved):
    edit(saved, EDITS[case], sealed=False)
    with pytest.raises(
        ValueError, match=r"was changed after it was written: .*dplearn.checkpoint.seal\(folder\)"
    ):
        dp.from_pretrained(saved, tiny.t5(dtype=torch.float32))


def leaves(value, path=()):
    """The way to each value in a document that holds no others; an empty list or object is one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, each in inner for leaf in leaves(each, (*path, key))]
    return below or [path]


def changed(value):
    """Another value of the same kind, as far as there is one."""
    if isinstance(value, bool) or value is None or value in ([], {}):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


def test_no_value_in_the_file_can_be_changed_and_none_can_go(saved):
    text, refused = (saved / checkpoint.CONFIG).read_text(), 0
    for *path, last in leaves(json.loads(text)):
        for edits in ("change", "remove"):
            document = json.loads(text)
            place = document
            for key in path:
                place = place[key]
            if edits == "change":
                place[last] = changed(place[last])
            else:
                del place[last]
            (saved / checkpoint.CONFIG).write_text(json.dumps(document))
            with pytest.raises(ValueError, match=checkpoint.CONFIG):
                checkpoint.read(saved)
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("part", ["seal", "weights", "prompt", "backbone"])
def test_a_missing_part_is_refused(part, saved):
    edit(saved, lambda document: document.pop(part), sealed=False)
    with pytest.raises(
        ValueError, match="is incomplete, expected prompt, backbone and weights with their seal"
    ):
        checkpoint.read(saved)


@pytest.mark.parametrize("value", [None, 5, "text", [1], {}, {"options": 1, "sha256": 2}, {"file": 1}])
@pytest.mark.parametrize("part", ["seal", "weights", "prompt", "backbone", "format"])
def test_a_part_of_another_kind_is_an_error_that_names_the_file(part, value, saved):
    edit(saved, lambda document: document.update({part: value}), sealed=False)
    with pytest.raises(ValueError, match=checkpoint.CONFIG):
        checkpoint.read(saved)


def test_what_was_edited_on_purpose_can_be_sealed_again(saved):
    edit(saved, lambda document: document["prompt"].update(temperature=0.25), sealed=False)
    checkpoint.seal(saved)
    assert dp.from_pretrained(saved, tiny.t5(dtype=torch.float32)).prompt_config.temperature == 0.25
    assert sorted(path.name.split("-")[0] for path in saved.iterdir()) == [
        "README.md",
        "prompt",
        "prompt_config.json",
    ]


def test_spaces_and_the_order_of_keys_are_no_edits(saved):
    document = document_of(saved)
    turned = {key: document[key] for key in reversed(document)}
    turned["prompt"] = {key: document["prompt"][key] for key in sorted(document["prompt"])}
    (saved / checkpoint.CONFIG).write_text(json.dumps(turned, indent=7))
    assert checkpoint.read(saved).options == CONFIG.to_dict()


def test_settings_that_lost_their_seal_are_no_settings_of_an_older_version(saved):
    """Without the mark in the tensor file, these would be format 2 with another prompt."""

    def downgraded(document):
        document.update(format=2)
        document["prompt"].update(position="prefix")
        del document["seal"]

    edit(saved, downgraded, sealed=False)
    with pytest.raises(ValueError, match="was changed after it was written: it has no seal, and prompt-"):
        checkpoint.read(saved)


def as_before(folder):
    """As the first release wrote it: no seal, no size, and no mark in the tensor file."""
    (path,) = folder.glob("prompt-*.safetensors")
    data = checkpoint.pack(checkpoint.unpack(path, path.read_bytes()))
    path.write_bytes(data)

    def unsealed(document):
        document.update(format=2)
        document["weights"].update(sha256=hashlib.sha256(data).hexdigest())
        del document["seal"], document["weights"]["bytes"]

    edit(folder, unsealed)


def test_a_checkpoint_from_before_the_seal_loads_as_it_did(saved):
    before = checkpoint.read(saved)
    as_before(saved)
    again = checkpoint.read(saved)
    assert again.options == before.options and again.backbone == before.backbone
    assert torch.equal(again.tensors["vectors"], before.tensors["vectors"])
    edit(saved, lambda document: document["prompt"].pop("head"))  # an option that came later has its default
    assert dp.from_pretrained(saved, tiny.t5(dtype=torch.float32)).prompt_config == CONFIG


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=5), values, max_size=4), st.text(max_size=5), values)
def test_settings_survive_the_way_through_json_and_no_value_can_be_exchanged(options, name, value):
    document = json.loads(json.dumps(sealed.document(options, {"class": "A"}, sealed.Weights("w", "0", 1))))
    assert sealed.verify("here", document) == (options, {"class": "A"}, ("w", "0", 1), None)
    tensor = sealed.to_tensor(options, {"class": "A"})
    assert sealed.from_tensor("here", tensor) == (options, {"class": "A"}, None, None)
    edited = options | {name: value}
    same = json.dumps(edited, sort_keys=True) == json.dumps(options, sort_keys=True)
    if not same:
        with pytest.raises(ValueError, match="here was changed"):
            sealed.verify("here", document | {"prompt": edited})


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, torch.ones(2)])
def test_options_that_json_cannot_hold_are_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(ValueError, match="the settings of a prompt have to be JSON values"):
        checkpoint.save(tmp_path / "new", {"vectors": torch.ones(2, 3)}, {"a": value}, {})
    assert not (tmp_path / "new").exists()


# --- the tensors that the settings name ---


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(wrong, dtype, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    tensors = {"fine": torch.zeros(2), "position.bias": torch.tensor([1.0, wrong, 2.0]).to(dtype)}
    with pytest.raises(ValueError, match=r"tensor 'position.bias' cannot be saved to .* with 1 of 3 numbers"):
        checkpoint.save(saved, tensors, {}, {})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "check_finite", lambda *_: None)
        checkpoint.save(saved, tensors, {}, {})
    with pytest.raises(ValueError, match=r"tensor 'position.bias' is loaded from .* with 1 of 3 numbers"):
        checkpoint.read(saved)


def test_large_finite_numbers_of_every_dtype_are_saved(tmp_path):
    tensors = {
        str(dtype): torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    checkpoint.save(tmp_path, tensors, {}, {})
    found = checkpoint.read(tmp_path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_of_another_size_is_refused_before_it_is_read(saved, monkeypatch):
    (path,) = saved.glob("*.safetensors")
    with open(path, "ab") as file:
        file.truncate(3 * 2**30)  # no room is taken on the disk

    def reads(*_):
        raise AssertionError("the file was read")

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", reads)
    with pytest.raises(ValueError, match=r"is damaged or truncated: 3221225472 bytes, expected \d+"):
        checkpoint.read(saved)


NAMES = {
    "too long": ("a" * 5000 + ".safetensors", "names 'aaa.*aaa.safetensors', expected the name of a file"),
    "with a zero byte": ("a\0b.safetensors", "there is no such file beside it"),
    "half of a character": ("a\ud800.safetensors", "cannot be read: UnicodeEncodeError"),
    "empty": ("", "there is no such file beside it"),
    "the folder above": ("..", "there is no such file beside it"),
    "the settings": ("prompt_config.json", "expected a .safetensors file: pickles are never loaded"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_is_no_file_of_tensors_is_refused(case, saved):
    name, message = NAMES[case]
    edit(saved, lambda document: document["weights"].update(file=name))
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.read(saved)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F7", "", "F" * 5000])
def test_tensors_of_an_unknown_dtype_are_a_clear_error(dtype, tmp_path):
    header = json.dumps(
        {"vectors": {"dtype": dtype, "shape": [8], "data_offsets": [0, 6 if "6" in dtype else 8]}}
    )
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(8)
    with pytest.raises(ValueError, match="is damaged, expected safetensors|does not know"):
        checkpoint.unpack(tmp_path / "file", data)


# --- tensors that travel with their settings ---

KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)


@pytest.mark.parametrize("dtype", KINDS)
def test_the_digest_of_tensors_is_that_of_their_names_kinds_shapes_and_bytes(dtype):
    rows = torch.ones(2, 3).to(dtype)
    text = f"a {dtype} () b {dtype} (2, 3) "
    one, six = rows[0, 0].reshape(1).view(torch.uint8), rows.reshape(-1).view(torch.uint8)
    head, tail = text.split("b ")
    data = head.encode() + bytes(one.tolist()) + f"b {tail}".encode() + bytes(six.tolist())
    assert sealed.digest_of({"b": rows, "a": rows[0, 0]}) == hashlib.sha256(data).hexdigest()
    assert sealed.digest_of({"b": rows.T.contiguous().T, "a": rows[0, 0]}) == hashlib.sha256(data).hexdigest()
    assert sealed.digest_of({"b": rows.reshape(3, 2), "a": rows[0, 0]}) != hashlib.sha256(data).hexdigest()


def test_of_a_share_of_tensors_there_is_no_digest():
    class Share(torch.Tensor):
        """As a process of several holds it."""

    whole = torch.ones(2)
    assert sealed.digest_of({"a": torch.nn.Parameter(whole)}) == sealed.digest_of({"a": whole})
    assert sealed.digest_of({"a": whole, "b": whole.as_subclass(Share)}) is None
    assert sealed.digest_of({"a": whole, "b": torch.empty(2, device="meta")}) is None


# --- whether the backbone fits ---

RECORDED = {
    "model_type": "t5",
    "class": "A",
    "width": 16,
    "vocabulary": 60,
    "patch": [3, 4, 4],
    "what_is_new": "x",
}


@pytest.mark.parametrize("key", RECORDED)
def test_every_recorded_key_is_compared(key):
    other = 59 if key == "vocabulary" else "other"
    with pytest.raises(ValueError, match=f"with {key}=.*this one has {key}={other!r}"):
        fits.check_backbone("here", RECORDED, RECORDED | {key: other})
    with pytest.raises(ValueError, match=f"with {key}=.*this one has {key}=None"):
        fits.check_backbone(
            "here", RECORDED, {name: value for name, value in RECORDED.items() if name != key}
        )


def test_what_may_differ_may_differ():
    """A vocabulary that grew, what an older version did not record, and what is compared with a warning."""
    fits.check_backbone("here", RECORDED, RECORDED | {"vocabulary": 64})
    fits.check_backbone("here", RECORDED, RECORDED | {"recorded_from_now_on": 3})
    loose = {"name_or_path": "a", "fingerprint": {}, "quantization": None}
    fits.check_backbone("here", RECORDED | loose, RECORDED | dict.fromkeys(loose, "b"))
    with pytest.raises(ValueError, match="model_type=None"):
        fits.check_backbone("here", {}, RECORDED)


def test_a_prompt_loads_where_tokens_were_added_and_not_where_some_are_gone(saved):
    for size, wrong in ((64, False), (48, True)):
        backbone = tiny.t5(dtype=torch.float32)
        backbone.resize_token_embeddings(size, mean_resizing=False)
        if wrong:
            with pytest.raises(ValueError, match="vocabulary=60, this one has vocabulary=48"):
                dp.from_pretrained(saved, backbone)
        else:
            assert dp.from_pretrained(saved, backbone).prompt.vectors.shape == (2, 4, 16)
