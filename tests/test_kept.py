"""What is kept of inputs: found again by what it was made from, in memory and in files, padded, and never of other weights."""

import hashlib
import struct

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dplearn.kept import KeptInputs, digest_of, state_of


class Model(nn.Sequential):
    """Weights and their dtype, which is all that is asked of a model."""

    def __init__(self, dtype=torch.float64):
        super().__init__(nn.Linear(5, 7), nn.LayerNorm(6))
        self.to(dtype)

    @property
    def dtype(self):
        return self[0].weight.dtype


def layers(length, seed, dtype=torch.float64):
    """Keys and values of two layers for one input; a value is longer than a key."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, length, 4), (2, length, 5)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


INPUTS = {"aa": layers(3, 0), "bb": layers(1, 1), "cc": layers(4, 2)}
CPU = torch.device("cpu")
where = pytest.mark.parametrize("folder", [None, "some/where"])


def kept_in(tmp_path, folder, **options):
    return KeptInputs(Model(), folder=folder and tmp_path / folder, **options)


def by_hand(names, dtype=torch.float64):
    """Layer by layer (B, H, T, d) with zeros in front of shorter inputs, and the mask."""
    longest = max(INPUTS[name][0].shape[1] for name in names)
    batched = [torch.zeros(len(names), 2, longest, size, dtype=torch.float64) for size in (4, 5, 4, 5)]
    mask = torch.zeros(len(names), longest, dtype=torch.long)
    for b, name in enumerate(names):
        for layer, values in enumerate(INPUTS[name]):
            for t in range(values.shape[1]):
                batched[layer][b, :, longest - values.shape[1] + t] = values[:, t].to(dtype).double()
                mask[b, longest - values.shape[1] + t] = 1
    return batched, mask


# --- names ---


def test_the_name_of_an_input_is_a_hash_of_its_numbers():
    """A folder is read by later versions too: a name must not change."""
    ids = hashlib.blake2b(struct.pack("<3q", 3, 5, 1), digest_size=16).hexdigest()
    pixels = hashlib.blake2b(struct.pack("<4d", 0.25, 0.75, 0.5, 1.0), digest_size=16).hexdigest()
    assert digest_of(torch.tensor([3, 5, 1])) == digest_of(torch.tensor([3, 5, 1], dtype=torch.uint8)) == ids
    rows = torch.tensor([[0.25, 0.5], [0.75, 1.0]], requires_grad=True)
    assert digest_of(rows.mT) == digest_of(rows.mT.half()) == pixels != digest_of(rows)
    names = [[1], [1.0], [0.5], [0.25], [0], [1, 0], [0, 1]]
    assert len({digest_of(torch.tensor(values)) for values in names}) == len(names)


# --- kept and found ---


@where
def test_what_is_kept_is_given_back_padded_in_front(tmp_path, folder):
    kept = kept_in(tmp_path, folder)
    assert len(kept) == 0 and kept.digests == frozenset() and "aa" not in kept
    kept.add({name: INPUTS[name] for name in ("aa", "bb")})
    kept.add({"cc": INPUTS["cc"]})
    kept.add({})
    assert len(kept) == 3 and kept.digests == set(INPUTS)
    assert [name in kept for name in ("aa", "bb", "cc", "dd")] == [True, True, True, False]
    for names in (["bb", "aa"], ["aa", "bb"], ["cc"], ["cc", "bb", "bb", "aa"], ["bb"]):
        found, mask = kept.layers(names, CPU)
        expected, real = by_hand(names)
        assert torch.equal(mask, real) and mask.dtype == torch.long and len(found) == 4
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert kept.layers(["bb"], CPU) is kept.layers(["bb"], CPU) is not kept.layers(["aa"], CPU)
    on_device = kept.layers(["bb", "aa"], torch.device("meta"))
    assert {each.device.type for each in [*on_device[0], on_device[1]]} == {"meta"}
    with pytest.raises(KeyError, match="dd"):
        kept.layers(["dd"], CPU)


@where
def test_the_states_of_an_image_are_one_tensor(tmp_path, folder):
    kept, states = kept_in(tmp_path, folder), torch.randn(1, 6, 3).double()
    kept.add({"aa": [states]})
    (found,), mask = kept.layers(["aa", "aa"], CPU)
    assert torch.equal(found, torch.stack([states, states])) and mask.tolist() == [[1] * 6] * 2


@where
def test_inputs_of_different_numbers_of_layers_are_not_mixed(tmp_path, folder):
    kept = kept_in(tmp_path, folder)
    kept.add({"aa": INPUTS["aa"], "bb": INPUTS["bb"][:2]})
    with pytest.raises(ValueError, match="zip"):
        kept.layers(["aa", "bb"], CPU)


@where
def test_a_shorter_dtype_rounds_and_gives_the_models_own(tmp_path, folder):
    kept = kept_in(tmp_path, folder, dtype=torch.bfloat16)
    assert kept.dtype == torch.bfloat16 and kept_in(tmp_path, None).dtype == torch.float64
    kept.add(INPUTS)
    found, expected = kept.layers(["bb", "aa"], CPU)[0], by_hand(["bb", "aa"], torch.bfloat16)[0]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert {each.dtype for each in found} == {torch.float64}


@where
def test_other_inputs_are_forgotten_and_files_stay(tmp_path, folder):
    kept = kept_in(tmp_path, folder)
    kept.add(INPUTS)
    kept.layers(["aa"], CPU)
    kept.keep_only({"bb", "cc", "dd"})
    assert kept.digests == {"bb", "cc"} and len(kept) == 2
    with pytest.raises(KeyError, match="aa"):
        kept.layers(["aa"], CPU)
    assert torch.equal(kept.layers(["bb"], CPU)[0][0], INPUTS["bb"][0][None])
    if folder:
        assert kept_in(tmp_path, folder).digests == set(INPUTS)


def test_a_folder_is_read_and_written_by_several(tmp_path):
    first, second = (kept_in(tmp_path, "kept") for _ in range(2))
    first.add({"aa": INPUTS["aa"], "bb": INPUTS["bb"]})
    second.add({"cc": INPUTS["cc"]})
    (tmp_path / "kept" / "notes.safetensors").write_bytes(b"none of ours")
    second.add({})
    assert len(list((tmp_path / "kept").glob("inputs-*.safetensors"))) == 2
    again = KeptInputs(Model(), folder=str(tmp_path / "kept"))
    assert again.digests == set(INPUTS)
    found, expected = again.layers(["aa", "cc", "bb"], CPU), by_hand(["aa", "cc", "bb"])
    assert_close(found, expected, rtol=0, atol=0)
    first.add({"aa": INPUTS["aa"], "bb": INPUTS["bb"]})  # the same again takes no more room
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 3


def test_what_is_asked_for_is_told_apart(tmp_path):
    for options in ((None, None), (torch.bfloat16, None), (None, "here"), (torch.bfloat16, "here")):
        dtype, folder = options
        kept = kept_in(tmp_path, folder, dtype=dtype)
        for asked in (None, torch.float64, torch.bfloat16):
            for place in (None, tmp_path / "here", str(tmp_path / "here"), tmp_path / "there"):
                same = kept.dtype == (asked or torch.float64)
                same = same and (kept.folder is None if place is None else str(kept.folder) == str(place))
                assert kept.made_as(asked, place) is same


def test_as_a_context_it_undoes_what_it_was_told_to():
    kept, calls = KeptInputs(Model()), []
    with kept as found:
        assert found is kept
    kept.forget = lambda: calls.append(1)
    with pytest.raises(RuntimeError, match="inside"), kept:
        assert calls == []
        raise RuntimeError("inside")
    assert calls == [1]


# --- weights ---


def written(model):
    """The same weights after each way in which they can change, by name; a write through ``data`` at the middle."""
    weight = model[0].weight
    yield "nothing", False
    with torch.no_grad():
        weight[0, 0] += 1
    yield "in place", True
    for name, parameter in model.named_parameters():
        parameter.data.view(-1)[parameter.numel() // 2] += 1
        yield f"data of {name}", True
    weight.data = weight.data.clone()
    yield "moved", True
    weight.data[3, 2] += 1
    yield "data, where it moved to", True
    model.to(torch.bfloat16)
    yield "dtype", True
    model[0].register_parameter("more", nn.Parameter(torch.zeros(())))
    yield "a number beside", True
    model[0].more.data += 1
    yield "data of the number", True
    model[1].register_parameter("empty", nn.Parameter(torch.zeros(0)))
    model[1].register_parameter("elsewhere", nn.Parameter(torch.zeros(3, device="meta")))
    yield "parameters without values", False


def test_every_change_of_weights_is_seen():
    model = Model()
    kept, before = KeptInputs(model), state_of(model)
    assert kept.fresh and state_of(Model()) != before
    for name, changed in written(model):
        after = state_of(model)
        assert (after != before) is changed, name
        before = after
    assert not kept.fresh and KeptInputs(model).fresh
