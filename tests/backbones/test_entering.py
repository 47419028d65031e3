"""How rows enter a text model: as it embeds them itself, once it has been asked, and where it has room for them."""

import pytest
import tiny
import torch
from torch.testing import assert_close
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    MarianConfig,
    MarianMTModel,
)

import dplearn as dp
from dplearn import backbones, loading

EXACT = dict(rtol=0, atol=1e-10)


def spliced(ids, words, k):
    return torch.cat([words[:k], ids, words[k:]])


def marian():
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, dropout=0.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, scale_embedding=True, init_std=0.3,
    )  # fmt: skip
    return MarianMTModel(config).double().eval()


def test_rows_are_scaled_where_the_model_scales_them_behind_its_table():
    """Marian multiplies by the root of the width what it looked up, and not what it is given."""
    model, words = marian(), torch.tensor([7, 9, 11])
    prompt = dp.prompted(
        model, dp.PromptConfig(length=3, position=1), vectors=4 * model.get_input_embeddings()(words)
    )
    ids, decoder = torch.tensor([5, 20, 30, 1]), torch.tensor([[0, 8]])
    found = prompt(ids[None], decoder_input_ids=decoder).logits
    whole = torch.cat([spliced(ids[:-1], words, 1), ids[-1:]])
    assert_close(found, model(whole[None], decoder_input_ids=decoder).logits, **EXACT)


def gemma3(scale=1.0):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=60, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, sliding_window=4, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, initializer_range=0.4, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).double().eval()


@pytest.mark.parametrize("make", [gemma3, marian, tiny.bart, tiny.t5, tiny.gpt2])
def test_the_first_vectors_are_words_as_the_model_embeds_them(make):
    """Each is one of the rows that the layers get for a token (Gemma's embedding module multiplies by the root of d)."""
    model = make()
    factor = 4.0 if make is marian else 1.0
    every = factor * model.get_input_embeddings()(torch.arange(60)).float()
    vectors = dp.prompted(model, dp.PromptConfig(length=7)).prompt.vectors
    distance = (vectors[:, None] - every).abs().amax(2).amin(1)
    assert_close(distance, torch.zeros(7), rtol=0, atol=1e-5)
    assert vectors.norm(dim=1).mean() > 0.5 * every.norm(dim=1).mean()


def test_angles_that_stretch_with_the_input_have_no_last_row():
    model = tiny.llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    ids, words = torch.randint(3, 60, (70,)), torch.tensor([7, 9, 11])
    prompt = dp.prompted(
        model, dp.PromptConfig(length=3, position=2), vectors=model.get_input_embeddings()(words)
    )
    expected = model(spliced(ids, words, 2)[None]).logits[:, -1]
    assert_close(prompt(ids[None]).logits[:, -1], expected, **EXACT)


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_a_classifier_reads_the_last_real_row_and_warns_of_nothing(make, said):
    """transformers warns that it cannot see padding in embedded inputs; here the head gets the tokens."""
    kind = GPT2ForSequenceClassification if make is tiny.gpt2 else LlamaForSequenceClassification
    model, words = make(kind), torch.tensor([7, 9, 11])
    prompt = dp.prompted(
        model, dp.PromptConfig(length=3, position=1), vectors=model.get_input_embeddings()(words)
    )
    for side in ("right", "left"):
        ids, mask = tiny.batch([5, 3, 7], side=side, eos=False)
        found = prompt(ids, mask).logits
        for row, real, logits in zip(ids, mask.bool(), found):
            whole = spliced(row[real], words, 1)[None]
            assert_close(logits, model(whole).logits[0], **EXACT)
    assert "padding" not in str(said)
    model(inputs_embeds=model.get_input_embeddings()(ids))
    assert "will not detect padding" in str(said)  # the control: there it is said, and would have been heard


def test_one_load_builds_one_adapter(tmp_path, monkeypatch):
    dp.prompted(tiny.gpt2(), dp.PromptConfig(length=3)).save_pretrained(tmp_path)
    calls = []
    monkeypatch.setattr(loading, "adapt", lambda backbone: calls.append(1) or backbones.adapt(backbone))
    model = dp.from_pretrained(tmp_path, tiny.gpt2())
    model.load_prompt("again", tmp_path)
    model.summary()
    model.save_pretrained(tmp_path)
    assert calls == [1]


def test_a_model_is_asked_with_tokens_that_mean_nothing_special_to_it():
    from dplearn.backbones.probing import probe_ids

    model = tiny.bert()
    model.config.cls_token_id, model.config.sep_token_id, model.config.mask_token_id = 59, [58, 57], 3
    ids = probe_ids(model, 60)[0].tolist()
    assert len(set(ids)) == 5 and not set(ids) & {0, 3, 57, 58, 59}


class Odd(torch.nn.Module):
    """A base model whose rows are read in one of several odd ways."""

    def __init__(self, base, way):
        super().__init__()
        self.base, self.way = base, way

    def states(self, mask, first=0, input_ids=None, inputs_embeds=None):
        rows = self.base.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if self.way == "ids again" and input_ids is not None:
            rows = rows.flip(-1)
        if self.way == "table alone" and inputs_embeds is not None:
            nearest = torch.cdist(rows, self.base.wte.weight[None]).argmin(-1)
            assert torch.equal(self.base.wte(nearest), rows), "no token has these rows"
        if self.way == "padding" and inputs_embeds is not None:
            mask = torch.ones_like(mask)
            rows = rows * mask.sum()
        if self.way == "padding" and input_ids is not None:
            rows = rows * mask.sum()
        places = torch.arange(mask.shape[1])[None] + first
        return self.base(
            inputs_embeds=rows, attention_mask=mask, position_ids=places, use_cache=False
        ).last_hidden_state


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("ids again", "answers differently to tokens and to their embeddings"),
        ("table alone", "fails on embedded tokens: AssertionError: no token has these rows"),
        ("padding", "answers differently where an input is padded"),
    ],
)
def test_what_cannot_be_taken_for_granted_is_refused(way, reason):
    from dplearn.backbones.probing import Refused, tried

    model = tiny.gpt2()
    with pytest.raises(Refused, match=reason):
        tried(model, model.transformer.wte, model, Odd(model.transformer, way).states)
