"""Order-blindness and its exceptions on real classes with small random weights, and the probe that measures them.

Everything is in float64 with scaled-dot-product attention, where a proved zero is below 1e-12. Every zero has a control
beside it that is far from zero.
"""

import copy
import functools

import pytest
import tiny
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import dplearn as dp
from dplearn.backbones.reading import Reading
from dplearn.backbones.rows import take_rows
from dplearn.backbones.views import evaluating
from dplearn.theory import position_sensitivity, sensitivity
from dplearn.theory.sensitivity import absorb, probe, readouts, tower
from dplearn.theory.sensitivity.towers import between, normal_like

LENGTH, ZERO = 4, 1e-12
IDS, MASK = tiny.batch([6, 3, 8])
TEXT = dict(input_ids=IDS, attention_mask=MASK)
START, END = 2, tiny.EOS
CLIP_IDS = torch.cat([torch.full((3, 1), START), IDS], 1)
CLIP_MASK = torch.cat([torch.ones(3, 1, dtype=torch.long), MASK], 1)
VISION_SIZE = dict(
    hidden_size=tiny.WIDTH,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=16,
    patch_size=4,
    attn_implementation="sdpa",
)


def pixels(dtype=torch.float64):
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def vit(kind=transformers.ViTModel, seed=0, dtype=torch.float64):
    config = transformers.ViTConfig(**VISION_SIZE, initializer_range=0.4, num_labels=5)
    return tiny.finish(kind, config, seed, dtype)


def deit(kind=transformers.DeiTModel, seed=0, dtype=torch.float64):
    config = transformers.DeiTConfig(**VISION_SIZE, initializer_range=0.4, num_labels=5)
    return scaled(tiny.finish(kind, config, seed, dtype))  # its special tokens start as zeros


def dinov2(kind=transformers.Dinov2Model, seed=0, dtype=torch.float64):
    size = {name: value for name, value in VISION_SIZE.items() if name != "intermediate_size"}
    config = transformers.Dinov2Config(**size, mlp_ratio=2, initializer_range=0.4, num_labels=5)
    return tiny.finish(kind, config, seed, dtype)


def scaled(model):
    """Weights of the size that the other models have; CLIP's own start is far too small for so few dimensions."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "class_embedding" in name:
                parameter.normal_(0, 0.4)
    return model


def clip_vision(kind=transformers.CLIPVisionModel, seed=0, dtype=torch.float64):
    config = transformers.CLIPVisionConfig(**VISION_SIZE, projection_dim=8)
    return scaled(tiny.finish(kind, config, seed, dtype))


def clip_text(kind=transformers.CLIPTextModel, seed=0, end=END):
    config = transformers.CLIPTextConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        bos_token_id=START,
        eos_token_id=end,
        pad_token_id=tiny.PAD,
        projection_dim=8,
        attn_implementation="sdpa",
    )
    return scaled(tiny.finish(kind, config, seed, torch.float64))


def siglip_vision(kind=transformers.SiglipVisionModel, seed=0, dtype=torch.float64):
    config = transformers.SiglipVisionConfig(**VISION_SIZE)
    if kind is transformers.SiglipForImageClassification:
        config = transformers.SiglipConfig(vision_config=config, num_labels=5)
    return scaled(tiny.finish(kind, config, seed, dtype))


def siglip_text(seed=0, room=32):
    size = dict(num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, projection_size=8)
    end = dict(pad_token_id=tiny.PAD, eos_token_id=tiny.EOS, bos_token_id=None)
    config = transformers.SiglipTextConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=tiny.WIDTH, max_position_embeddings=room, **size, **end
    )
    return scaled(tiny.finish(transformers.SiglipTextModel, config, seed, torch.float64))


def text(model):
    """The batch that a text model gets: with a start token for CLIP, without a mask for SigLIP, which sees padding."""
    if "Siglip" in type(model).__name__:
        return dict(input_ids=IDS)
    if "CLIP" in type(model).__name__:
        old = model.config.eos_token_id == 2  # which means the largest number
        ids = CLIP_IDS.masked_fill(CLIP_IDS == END, tiny.VOCABULARY - 1) if old else CLIP_IDS
        return dict(input_ids=ids, attention_mask=CLIP_MASK)
    return dict(input_ids=IDS, attention_mask=MASK)


def batch(model):
    return dict(pixel_values=pixels(model.dtype)) if image(model) else text(model)


def image(model):
    return type(model).__name__.startswith(
        ("ViT", "DeiT", "Dinov2", "CLIPVision", "SiglipVision", "SiglipForImage")
    )


def prepared(model, seed=0, **options):
    """Tower, batch as rows and a prompt with entries of the size of the rows."""
    stack = tower(model, image=image(model))
    reading = stack.embed(**(options or batch(model)))
    generator = torch.Generator().manual_seed(seed)
    return stack, reading, normal_like(reading.rows, LENGTH, generator)


def largest(now, before):
    return float((now - before).detach().abs().max())


BLIND = {
    "vit": vit,
    "deit": deit,
    "dinov2": dinov2,
    "dinov2-classifier": lambda **options: dinov2(transformers.Dinov2ForImageClassification, **options),
    "clip-vision": clip_vision,
    "siglip-vision": siglip_vision,
}
CAUSAL = {"gpt2": tiny.gpt2, "llama": tiny.llama, "qwen2": tiny.qwen2, "clip-text": clip_text}
KINDS = {
    **BLIND,
    **CAUSAL,
    "siglip-text": siglip_text,
    "t5": tiny.t5,
    "bart": tiny.bart,
    "bert": tiny.bert,
    "bert-classifier": lambda: tiny.bert(transformers.BertForSequenceClassification),
    "bert-tokens": lambda: tiny.bert(transformers.BertForMaskedLM),
    "roberta": lambda: tiny.roberta(transformers.RobertaForSequenceClassification),
    "distilbert": lambda: tiny.distilbert(transformers.DistilBertForSequenceClassification),
}


# ---- the towers are the models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, options, answer",
    [
        (vit, {}, "pooler_output"),
        (vit, {"kind": transformers.ViTForImageClassification}, "logits"),
        (clip_vision, {}, "pooler_output"),
        (clip_vision, {"kind": transformers.CLIPVisionModelWithProjection}, "image_embeds"),
        (clip_text, {}, "pooler_output"),
        (clip_text, {"kind": transformers.CLIPTextModelWithProjection, "end": 2}, "text_embeds"),
        (deit, {}, "pooler_output"),
        (deit, {"kind": transformers.DeiTForImageClassification}, "logits"),
        (deit, {"kind": transformers.DeiTForImageClassificationWithTeacher}, "logits"),
        (dinov2, {}, "pooler_output"),
        (dinov2, {"kind": transformers.Dinov2ForImageClassification}, "logits"),
        (siglip_vision, {}, "pooler_output"),
        (siglip_vision, {"kind": transformers.SiglipForImageClassification}, "logits"),
        (siglip_text, {}, "pooler_output"),
        (tiny.bert, {}, "pooler_output"),
        (tiny.bert, {"kind": transformers.BertForSequenceClassification}, "logits"),
        (tiny.t5, {}, "logits"),
    ],
)
def test_without_a_prompt_a_tower_is_its_model(make, options, answer):
    model = make(**options)
    stack = tower(model, image=image(model))
    extra = {}
    if stack.positions == sensitivity.RELATIVE:
        stack.decoder_input_ids = extra["decoder_input_ids"] = torch.tensor([[0, 5], [0, 7], [0, 9]])
    with torch.no_grad():
        states = stack.states(stack.embed(**batch(model)))
        output = model(**batch(model), **extra)
    assert_close(states.readout, output[answer], rtol=0, atol=ZERO)
    if "last_hidden_state" in output and not image(model):
        assert_close(
            states.hidden[MASK_OF(model)], output.last_hidden_state[MASK_OF(model)], rtol=0, atol=ZERO
        )
    assert states.fixed is None or torch.equal(states.fixed, states.readout)


def MASK_OF(model):
    batch = text(model)
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_causal_tower_reads_the_last_real_row(kind):
    model = CAUSAL[kind]()
    stack, reading, _ = prepared(model)
    with torch.no_grad():
        found = stack.states(reading).readout
        for row, length in enumerate(MASK.sum(1)):
            assert_close(found[row], model(IDS[row : row + 1, :length]).logits[0, -1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [0, 1, LENGTH])
def test_a_batch_is_its_instances(kind, split):
    """Padding and batch mates change neither the followed rows nor the answer."""
    model = KINDS[kind]()
    stack, reading, prompt = prepared(model)
    with torch.no_grad():
        together = stack.states(reading, prompt, split)
        for row in range(len(reading.rows)):
            one = {name: value[row : row + 1] for name, value in batch(model).items()}
            if "attention_mask" in one:
                length = int(one["attention_mask"].sum())
                one = {name: value[:, :length] for name, value in one.items()}
            alone = stack.states(stack.embed(**one), prompt, split)
            keep = together.between[row]
            assert_close(together.rows[row][keep], alone.rows[0][alone.between[0]], rtol=0, atol=1e-10)
            if kind != "bert-tokens":
                assert_close(together.readout[row], alone.readout[0], rtol=0, atol=1e-10)


# ---- the numbers are those of the words, written out ------------------------------------------------------------

WORDS = (7, 11, 30, 8)  # the prompt, as words


def probed(model, ids, mask=None):
    """The first two numbers of the table for the prompt of words: the rows' change and the answer's."""
    base = getattr(model, "text_model", model)
    prompt = base.get_input_embeddings()(torch.tensor(WORDS))
    found = position_sensitivity(model, input_ids=ids, attention_mask=mask, prompt=prompt, draws=1)
    return found.full.rows, found.full.readout


def changes(rows, answers):
    """The same from what a model makes of the texts at each split: lists over splits of (rows, d) and (B, ...)."""
    return tuple(
        max(float((now - seen[-1]).norm() / seen[-1].norm()) for now in seen) for seen in (rows, answers)
    )


@pytest.mark.parametrize("end", [END, 2], ids=["named end", "old configuration"])
@pytest.mark.parametrize("padding", [END, tiny.VOCABULARY - 1, tiny.PAD, 5])
def test_clip_text_is_the_spliced_text_whatever_the_padding(end, padding):
    """End tokens may be the padding, on the left too; only real tokens say where a text ends."""
    last = tiny.VOCABULARY - 1 if end == 2 else END  # an old configuration means the largest number
    model, start = clip_text(end=end), last - 1 if end == 2 else START
    if end == 2:
        model.config.bos_token_id = 0  # as the first checkpoints have it
    texts, rows, answers = [[5, 9, 6, 20], [40, 4], [3, 3, 17, 21, 12, 9]], [], []
    for split in range(LENGTH + 1):
        states, read = [], []
        for words in texts:
            ids = torch.tensor([[start, *WORDS[:split], *words, *WORDS[split:], last]])
            with torch.no_grad():
                output = model(input_ids=ids)
            states.append(output.last_hidden_state[0, 1 + split : 1 + split + len(words)])
            read.append(output.pooler_output[0])
        rows.append(torch.cat(states))
        answers.append(torch.stack(read))
    wanted = changes(rows, answers)
    assert min(wanted) > 0.1
    for side in ("right", "left", "both"):
        ids = torch.full((3, 12), padding)
        mask = torch.zeros_like(ids)
        for row, words in enumerate(texts):
            full = torch.tensor([start, *words, last])
            front = {"right": 0, "left": 12 - len(full), "both": 2}[side]
            ids[row, front : front + len(full)], mask[row, front : front + len(full)] = full, 1
        assert probed(model, ids, mask) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("columns", [9, 12])
def test_siglip_text_is_the_spliced_text_in_the_room_that_padding_leaves(columns):
    """``columns`` 12 is all the room that there is: the prompt takes the place of padding."""
    model, texts, rows, answers = (
        siglip_text(room=12),
        [[5, 9, 6, 20], [40, 4], [3, 3, 17, 21, 12, 9]],
        [],
        [],
    )
    for split in range(LENGTH + 1):
        states, read = [], []
        for words in texts:
            ids = [*WORDS[:split], *words, *WORDS[split:], tiny.EOS]
            ids += [tiny.PAD] * (min(columns + LENGTH, 12) - len(ids))
            with torch.no_grad():
                output = model(input_ids=torch.tensor([ids[:12]]))
            states.append(output.last_hidden_state[0, split : split + len(words)])
            read.append(output.pooler_output[0])
        rows.append(torch.cat(states))
        answers.append(torch.stack(read))
    wanted = changes(rows, answers)
    ids = torch.tensor([[*words, tiny.EOS] + [tiny.PAD] * (columns - 1 - len(words)) for words in texts])
    assert min(wanted) > 0.1 and probed(model, ids) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(
        ValueError, match="the longest text has 7 tokens, with 6 prompt vectors 13, expected at most 12"
    ):
        position_sensitivity(model, input_ids=ids, length=6)
    with pytest.raises(ValueError, match="attention_mask hides tokens, expected none"):
        position_sensitivity(model, input_ids=ids, attention_mask=(ids != tiny.PAD).long())


def test_a_clip_text_without_its_end_token_is_an_error():
    model, ids, mask = clip_text(), CLIP_IDS.clone(), CLIP_MASK.clone()
    mask[1, int(mask[1].sum()) - 1] = 0  # the end token is there, but hidden
    with pytest.raises(ValueError, match="input_ids row 1 has no end token, or padding in front"):
        position_sensitivity(model, input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(BLIND) - {"bert-tokens", "siglip-text"}))
def test_the_side_of_the_padding_changes_no_number(kind):
    model = KINDS[kind]()
    ids, mask = text(model)["input_ids"], text(model)["attention_mask"]
    left, shown = torch.zeros_like(ids), mask.flip(1)
    for row, length in enumerate(mask.sum(1)):
        left[row, -length:] = ids[row, :length]
    prompt = torch.randn(LENGTH, tiny.WIDTH, dtype=torch.float64)
    found = [
        position_sensitivity(model, input_ids=x, attention_mask=m, prompt=prompt, draws=1, splits=[0, 2])
        for x, m in ((ids, mask), (left, shown))
    ]
    for name, change in found[0].table().items():
        other = found[1].table()[name]
        assert (change is None) == (other is None)
        if change is not None:
            for now, then in zip(other, change, strict=True):
                assert now == then or now == pytest.approx(then, rel=1e-7, abs=1e-12), name


IMAGE_HEADS = [
    (vit, transformers.ViTForImageClassification),
    (deit, transformers.DeiTForImageClassification),
    (deit, transformers.DeiTForImageClassificationWithTeacher),
    (dinov2, transformers.Dinov2ForImageClassification),
]


@pytest.mark.parametrize(("make", "kind"), IMAGE_HEADS)
@pytest.mark.parametrize("split", [0, 1, LENGTH])
def test_the_answer_is_that_of_a_prompted_model(make, kind, split):
    model = make(kind)
    stack, reading, prompt = prepared(model)
    with torch.no_grad():
        found = stack.states(reading, prompt, split).readout
        # `prompted` keeps special tokens in front of the prompt; behind the positions order does not matter.
        config = dp.PromptConfig(length=LENGTH, position=split)
        wanted = dp.prompted(model, config, vectors=prompt)(pixel_values=pixels()).logits
    assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_siglip_without_a_pooling_head_has_no_answer():
    config = transformers.SiglipVisionConfig(**VISION_SIZE, vision_use_head=False)
    model = tiny.finish(transformers.SiglipVisionModel, config, 0, torch.float64)
    with pytest.raises(TypeError, match="expected vision_use_head=True"):
        position_sensitivity(model, pixel_values=pixels())


def test_siglip_whole_model_has_both_towers():
    model, images = tiny.siglip(), tiny.images(2)
    seen = position_sensitivity(model, pixel_values=images, draws=1)
    ids, _ = tiny.texts([[5, 6, 7], [9, 8]], siglip=True)
    read = position_sensitivity(model, input_ids=ids, draws=1)
    assert seen.order_blind and not read.order_blind
    with torch.no_grad():
        for stack, given, wanted in (
            (tower(model), dict(input_ids=ids), model.get_text_features(input_ids=ids)),
            (
                tower(model, image=True),
                dict(pixel_values=images),
                model.get_image_features(pixel_values=images),
            ),
        ):
            found = stack.states(stack.embed(**given)).readout
            assert_close(found, wanted.pooler_output, rtol=0, atol=ZERO)


@functools.cache
def placing():
    """A tower that keeps start tokens in front of the prompt."""
    return tower(clip_text())


@given(
    st.integers(0, LENGTH),
    st.integers(0, 2),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
)
def test_place_follows_a_loop(split, kept, lengths, start):
    """Start token first, end tokens last, padding behind, against lists of names."""
    width, first = max(lengths) + 3, int(start)
    real = [length + kept + first for length in lengths]
    inputs = 100 + torch.arange(len(lengths) * width, dtype=torch.float64).view(len(lengths), width, 1)
    mask = (torch.arange(width) < torch.tensor(real)[:, None]).long()
    surrounded = mask.clone()
    surrounded[:, :first] = 0
    read = {"input_ids": mask, "ends": torch.tensor(real) - 1, "special": first}
    reading = Reading(inputs, surrounded, mask, kept, read)
    stack = placing()
    prompt = torch.arange(LENGTH, dtype=torch.float64)[:, None]
    placed, middle = stack.place(reading, prompt, split), between(reading)
    for row, total in enumerate(real):
        tokens, vectors = inputs[row, :, 0].tolist(), prompt[:, 0].tolist()
        body = tokens[first : total - kept]
        wanted = [*tokens[:first], *vectors[:split], *body, *vectors[split:], *tokens[total - kept :]]
        assert placed.embeds[row, :, 0].tolist() == wanted
        assert placed.embeds[row, placed.input_positions[row], 0].tolist() == tokens
        assert placed.embeds[row, placed.prompt_positions[row], 0].tolist() == vectors
        assert inputs[row, middle[row], 0].tolist() == body


# ---- order-blindness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLIND)
def test_after_position_embeddings_no_split_changes_anything(kind):
    model = BLIND[kind]()
    stack, reading, prompt = prepared(model)
    prompt.requires_grad_()
    found = []
    for split in range(LENGTH + 1):
        states = stack.states(reading, prompt, split)
        loss = states.readout.square().sum() + states.rows.cos().sum()
        found.append((states.rows, states.readout, loss, *torch.autograd.grad(loss, prompt)))
    for now in found[:-1]:
        for value, wanted in zip(now, found[-1], strict=True):
            assert_close(value, wanted, rtol=ZERO, atol=ZERO)
    with torch.no_grad():
        other = stack.states(reading, prepared(model, seed=1)[2], LENGTH)
        assert largest(other.readout, found[-1][1]) > 0.1  # the vectors themselves do matter


@pytest.mark.parametrize("kind", BLIND)
def test_control_positions_added_after_the_insertion(kind):
    stack, reading, prompt = prepared(BLIND[kind]())
    table = torch.randn(reading.rows.shape[1] + LENGTH, tiny.WIDTH, dtype=torch.float64)
    rows = []
    for split in (0, LENGTH):
        placed = stack.place(reading, prompt, split)
        with torch.no_grad():
            hidden = stack.encode(placed.embeds + table)
        rows.append(take_rows(hidden, placed.input_positions))
    assert largest(*rows) > 0.5


@pytest.mark.parametrize("kind", BLIND)
def test_any_interleaving_gives_the_same_rows(kind):
    stack, reading, prompt = prepared(BLIND[kind]())
    rows = torch.cat([reading.rows, prompt.expand(2, -1, -1)], 1)
    with torch.no_grad():
        usual = stack.encode(rows)
        for seed in range(20):
            order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))
            assert largest(stack.encode(rows[:, order]), usual[:, order]) < ZERO
        assert largest(stack.encode(rows[:, order]), usual) > 0.5  # rows have to be followed


@pytest.mark.parametrize("kind", BLIND)
def test_deep_prompts_do_not_see_the_split_if_their_rows_are_followed(kind):
    stack, reading, prompt = prepared(BLIND[kind]())
    deep = torch.randn(2, LENGTH, tiny.WIDTH, dtype=torch.float64)
    followed, fixed = [], []
    with torch.no_grad():
        for split in range(LENGTH + 1):
            placed = stack.place(reading, prompt, split)
            for rows, results in (
                (placed.prompt_positions, followed),
                (1 + torch.arange(LENGTH).expand(2, -1), fixed),
            ):
                hidden = stack.encode(placed.embeds, deep=deep, deep_rows=rows)
                results.append(take_rows(hidden, placed.input_positions))
        shallow = stack.states(reading, prompt, 0).rows
    assert max(largest(rows, followed[0]) for rows in followed) < ZERO
    assert (
        max(largest(rows, fixed[0]) for rows in fixed) > 0.5
    )  # rows 1..l hold something else at other splits
    assert largest(shallow, followed[0]) > 0.1


def test_deep_prompts_are_fresh_at_the_second_layer_and_after():
    model = vit()
    stack, reading, prompt = prepared(model)
    deep = torch.randn(2, LENGTH, tiny.WIDTH, dtype=torch.float64)
    placed = stack.place(reading, prompt, 2)
    with torch.no_grad():
        found = stack.encode(placed.embeds, deep=deep, deep_rows=placed.prompt_positions)
        hidden = placed.embeds
        for number, layer in enumerate(model.layers):
            if number:  # split 2: the vectors stand in the first and the last two rows
                hidden = torch.cat(
                    [
                        deep[number - 1, :2].expand(2, -1, -1),
                        hidden[:, 2:-2],
                        deep[number - 1, 2:].expand(2, -1, -1),
                    ],
                    1,
                )
            hidden = layer(hidden)
    assert_close(found, model.layernorm(hidden), rtol=0, atol=ZERO)


@pytest.mark.parametrize("kind", BLIND)
def test_in_single_precision_the_zero_is_rounding(kind):
    stack, reading, prompt = prepared(BLIND[kind](dtype=torch.float32))
    with torch.no_grad():
        first, last = (stack.states(reading, prompt, split).rows for split in (1, LENGTH))
    assert largest(first, last) < 1e-4


@pytest.mark.parametrize("kind", ["vit", "deit", "clip-vision"])
def test_pooler_trap(kind):
    """The library's own pooler reads row 0; with a prompt before the class token that is a prompt vector."""
    model = BLIND[kind]()
    stack, reading, prompt = prepared(model)
    with torch.no_grad():
        postfix, surround = (stack.states(reading, prompt, split) for split in (0, 2))
        base = model.base_model
        hidden = surround.hidden
        library = base.post_layernorm(hidden[:, 0]) if kind == "clip-vision" else base.pooler(hidden)
    assert torch.equal(surround.fixed, library) and torch.equal(postfix.fixed, postfix.readout)
    assert largest(surround.readout, postfix.readout) < ZERO
    assert largest(surround.fixed, postfix.fixed) > 1e-2


def test_bert_with_an_empty_position_table_is_order_blind():
    model = tiny.bert()
    stack, reading, prompt = prepared(model)
    with torch.no_grad():
        before = largest(*(stack.states(reading, prompt, k).rows for k in (0, LENGTH)))
        model.embeddings.position_embeddings.weight.zero_()
        states = [stack.states(reading, prompt, k) for k in range(LENGTH + 1)]
    real = MASK != 0
    assert before > 0.1
    assert max(largest(s.rows[real], states[0].rows[real]) for s in states) < ZERO
    assert max(largest(s.readout, states[0].readout) for s in states) < ZERO


def test_t5_without_encoder_bias_is_a_set_to_its_decoder():
    model = tiny.t5()
    stack, reading, prompt = prepared(model)
    stack.decoder_input_ids = torch.tensor([[0, 5, 6], [0, 7, 8], [0, 9, 10]])
    with torch.no_grad():
        before = largest(*(stack.states(reading, prompt, k).readout for k in (0, LENGTH)))
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        answers = [stack.states(reading, prompt, k).readout for k in range(LENGTH + 1)]
    assert before > 0.02
    assert max(largest(answer, answers[0]) for answer in answers) < ZERO


# ---- switching mechanisms off -----------------------------------------------------------------------------------


def zeroed(kind):
    """A copy of the model whose position parameters are zero."""
    model = copy.deepcopy(KINDS[kind]())
    names = ("position_embedding", "wpe", "relative_attention_bias", "embed_positions")
    found = [
        p
        for name, p in model.named_parameters()
        if any(part in name for part in names) and "decoder" not in name
    ]
    assert found
    with torch.no_grad():
        for parameter in found:
            parameter.zero_()
    return model


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "gpt2", "clip-text", "siglip-text", "t5", "bart"]
)
def test_positions_off_equals_a_model_whose_position_parameters_are_zero(kind):
    stack, reading, prompt = prepared(KINDS[kind]())
    with torch.no_grad():
        with stack.without_positions():
            off = stack.states(reading, prompt, 1)
        on = stack.states(reading, prompt, 1)
        other = tower(zeroed(kind)).states(reading, prompt, 1)
    real = off.between
    assert_close(off.rows[real], other.rows[real], rtol=0, atol=ZERO)
    assert_close(off.readout, other.readout, rtol=0, atol=ZERO)
    assert largest(on.rows[real], other.rows[real]) > 0.1


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rotary_off_equals_all_rows_at_position_zero(kind):
    model = KINDS[kind]()
    stack, reading, prompt = prepared(model)
    placed = stack.place(reading, prompt, 1)
    with torch.no_grad():
        with stack.without_positions():
            off = stack.encode(placed.embeds, placed.mask)
        same = torch.zeros_like(placed.mask)
        inputs = dict(inputs_embeds=placed.embeds, attention_mask=placed.mask, position_ids=same)
        other = model.base_model(**inputs).last_hidden_state
    assert_close(off[placed.mask != 0], other[placed.mask != 0], rtol=0, atol=ZERO)
    assert largest(off, stack.encode(placed.embeds, placed.mask)) > 0.1


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_mask_hides_later_rows_and_see_all_does_not(kind):
    stack, reading, prompt = prepared(CAUSAL[kind]())
    placed = stack.place(reading, prompt, 2)
    changed = placed.embeds.clone()
    changed[2, -1] = changed[2, -1].flip(0)  # the last row of the longest instance
    with torch.no_grad():
        for see_all in (False, True):
            before, after = (
                stack.encode(rows, placed.mask, see_all=see_all)[2, :-1] for rows in (placed.embeds, changed)
            )
            assert (largest(after, before) > 0.01) if see_all else torch.equal(after, before)


@pytest.mark.parametrize("kind", CAUSAL)
def test_with_both_off_a_causal_model_commutes_with_any_order(kind):
    stack, reading, _ = prepared(CAUSAL[kind]())
    rows = reading.rows[2:]
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), stack.without_positions():
        usual, moved = (stack.encode(x, see_all=True) for x in (rows, rows[:, order]))
        assert largest(moved, usual[:, order]) < ZERO
        usual, moved = (stack.encode(x) for x in (rows, rows[:, order]))
        assert largest(moved, usual[:, order]) > 0.1


class Stop(Exception):
    pass


def fingerprint(model):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    forwards = ["forward" in m.__dict__ for m in model.modules()]
    return weights, hooks, forwards, [m.training for m in model.modules()]


def assert_untouched(model, before):
    weights, *rest = fingerprint(model)
    assert rest == list(before[1:])
    assert weights.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in weights.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(kind, failing, monkeypatch):
    model = KINDS[kind]()
    model.train()
    next(
        m for m in model.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear)
    ).eval()  # a mixed state
    before = fingerprint(model)
    if failing:

        def broken(*arguments):
            raise Stop

        monkeypatch.setattr(probe, "_relative", broken)
        with pytest.raises(Stop):
            position_sensitivity(model, **batch(model), length=2, draws=1)
    else:
        position_sensitivity(model, **batch(model), length=2, draws=1)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_an_error_inside_a_context_leaves_no_trace(kind):
    model = KINDS[kind]()
    before = fingerprint(model)
    stack, reading, prompt = prepared(model)
    usual = stack.encode(reading.rows, reading.mask)
    with pytest.raises(Stop), stack.without_positions():
        raise Stop
    if stack.table() is not None:
        with pytest.raises(Stop), stack.standing_at(torch.zeros(1, 1).long()):
            raise Stop
    assert torch.equal(stack.encode(reading.rows, reading.mask), usual)
    with pytest.raises(Stop), evaluating(model, copies=False):
        raise Stop
    assert_untouched(model, before)


# ---- the probe --------------------------------------------------------------------------------------------------


def test_the_probe_is_its_definition():
    model, prompt = tiny.bert(), torch.randn(LENGTH, tiny.WIDTH, dtype=torch.float64)
    found = position_sensitivity(model, input_ids=IDS, attention_mask=MASK, prompt=prompt, draws=1)
    states = []
    for k in range(LENGTH + 1):
        rows, pooled = [], []
        for ids, length in zip(IDS, MASK.sum(1), strict=True):
            embeds = model.get_input_embeddings()(ids[:length])
            output = model(inputs_embeds=torch.cat([prompt[:k], embeds, prompt[k:]])[None])
            rows.append(output.last_hidden_state[0, k : k + length])
            pooled.append(model.pooler(output.last_hidden_state[:, k:]))
        states.append((torch.cat(rows), torch.cat(pooled)))
    wanted = [
        max(((s[i] - states[-1][i]).norm() / states[-1][i].norm()).item() for s in states) for i in (0, 1)
    ]
    assert_close(torch.tensor(found.full[:2]), torch.tensor(wanted), rtol=1e-9, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_where_an_answer_begins_and_ends_follows_its_tokens(side):
    """A head for questions has two numbers for each token, and no logits."""
    model, prompt = tiny.bert(transformers.BertForQuestionAnswering), torch.randn(LENGTH, tiny.WIDTH).double()
    ids, mask = tiny.batch([6, 3, 8], side=side)
    found = position_sensitivity(model, input_ids=ids, attention_mask=mask, prompt=prompt, draws=1)
    answers = []
    for k in range(LENGTH + 1):
        told = []
        for row, shown in zip(ids, mask != 0, strict=True):
            embeds = model.get_input_embeddings()(row[shown])
            output = model(inputs_embeds=torch.cat([prompt[:k], embeds, prompt[k:]])[None])
            told += [torch.stack([output.start_logits, output.end_logits], -1)[0, k : k + len(embeds)]]
        answers.append(torch.cat(told))
    assert found.full.readout == pytest.approx(changes(answers, answers)[1], rel=1e-9)
    assert found.full.fixed is None and found.full.readout > 0.1


@torch.no_grad()
def test_a_causal_model_without_a_head_answers_with_its_last_row():
    model, prompt = tiny.llama(transformers.LlamaModel), torch.randn(LENGTH, tiny.WIDTH).double()
    found = position_sensitivity(model, input_ids=IDS, attention_mask=MASK, prompt=prompt, draws=1)
    answers = []
    for k in range(LENGTH + 1):
        rows = [
            model.get_input_embeddings()(ids[:length]) for ids, length in zip(IDS, MASK.sum(1), strict=True)
        ]
        whole = [torch.cat([prompt[:k], row, prompt[k:]])[None] for row in rows]
        answers.append(torch.cat([model(inputs_embeds=one).last_hidden_state[:, -1] for one in whole]))
    assert found.full.readout == pytest.approx(changes(answers, answers)[1], rel=1e-9)


# What each kind must show: in its rows, position off, mask off, both off; then in the answer with everything off.
# 0 proved zero, + acts, None not there.
PATTERN = {
    "vit": ("0", None, None, None, "0"),
    "deit": ("0", None, None, None, "0"),
    "dinov2": ("0", None, None, None, "0"),
    "dinov2-classifier": ("0", None, None, None, "0"),
    "clip-vision": ("0", None, None, None, "0"),
    "siglip-vision": ("0", None, None, None, "0"),
    "siglip-text": ("+", "0", None, "0", "0"),
    "bert": ("+", "0", None, "0", "0"),
    "bert-classifier": ("+", "0", None, "0", "0"),
    "bert-tokens": ("+", "0", None, "0", "0"),
    "roberta": ("+", "0", None, "0", "0"),
    "distilbert": ("+", "0", None, "0", "0"),
    "t5": ("+", "0", None, "0", "0"),
    "bart": ("+", "0", None, "0", "0"),
    "gpt2": ("+", "+", "+", "0", "+"),
    "llama": ("+", "+", "+", "0", "+"),
    "qwen2": ("+", "+", "+", "0", "+"),
    "clip-text": ("+", "+", "+", "0", "0"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_table_has_the_proved_zeros_and_no_others(kind):
    model = KINDS[kind]()
    found = position_sensitivity(model, **batch(model), draws=2)

    def mark(change, column="rows"):
        if change is None:
            return None
        value = getattr(change, column)
        assert value < ZERO or value > 0.01
        return "0" if value < ZERO else "+"

    parts = (found.full, found.position_off, found.mask_off, found.both_off)
    marks = *map(mark, parts), mark(found.both_off or found.full, "readout")
    assert marks == PATTERN[kind]
    assert mark(found.redrawn) == mark(found.redrawn, "readout") == "+"
    assert found.accounts_for_all and found.order_blind == (kind in BLIND)
    assert ("causal visibility" in found.mechanisms) == (kind in CAUSAL)
    assert ("readout" in found.mechanisms) == (kind in ("gpt2", "llama", "qwen2"))
    assert (found.input_moves is None) == (
        kind not in ("gpt2", "clip-text", "siglip-text", "roberta", "distilbert") and "bert" not in kind
    )
    if kind in BLIND:
        assert found.verdict.startswith("order-blind: learning a position cannot change the answer")
        assert found.fixed_index_trap and "does not follow" in found.verdict
    else:
        assert found.verdict.startswith("the split acts through " + found.positions)
    assert " ".join(str(found).splitlines()).endswith(found.verdict)


def test_a_model_with_an_empty_table_is_order_blind_on_the_batch():
    model = tiny.bert()
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
    found = position_sensitivity(model, input_ids=IDS, attention_mask=MASK)
    assert found.order_blind and found.mechanisms == () and found.fixed_index_trap
    assert found.verdict.startswith("order-blind on this batch")


def test_positions_out_of_reach_are_said_to_be():
    sizes = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32)
    config = transformers.OPTConfig(**sizes, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.4)
    model = tiny.finish(transformers.OPTForCausalLM, config, 0, torch.float64)
    found = position_sensitivity(model, input_ids=IDS, attention_mask=MASK)
    assert found.full.rows > 0.05 and found.position_off is found.mask_off is found.both_off is None
    assert found.mechanisms == () and not found.accounts_for_all
    assert "what is not known" in found.verdict and "OPTForCausalLM" in found.verdict
    with pytest.raises(TypeError, match="OPTForCausalLM has no position information that is known"):
        with tower(model).without_positions():
            pass


def test_a_mechanism_that_the_probe_misses_is_seen():
    """GPT-Neo's layers bring a causal mask of their own, which no mask from outside takes away."""
    sizes = dict(vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32)
    more = dict(attention_types=[[["global", "local"], 1]], window_size=3, max_position_embeddings=64)
    config = transformers.GPTNeoConfig(**sizes, **more, initializer_range=0.4)
    model = tiny.finish(transformers.GPTNeoForCausalLM, config, 0, torch.float64)
    found = position_sensitivity(model, input_ids=IDS, attention_mask=MASK)
    assert found.both_off.rows > 0.05 and not found.accounts_for_all
    assert "through something else too" in found.verdict


def test_a_trained_prompt_and_chosen_splits():
    model, prompt = tiny.t5(), torch.randn(LENGTH, tiny.WIDTH)
    given_prompt = position_sensitivity(model, **text(model), prompt=prompt, splits=[0, LENGTH, 2, 0])
    assert given_prompt.splits == (0, 2, LENGTH) and given_prompt.length == LENGTH
    every = position_sensitivity(model, **text(model), prompt=prompt)
    assert given_prompt.full.rows <= every.full.rows
    assert position_sensitivity(model, **text(model), seed=1) == position_sensitivity(
        model, **text(model), seed=1
    )
    assert position_sensitivity(model, **text(model), seed=1) != position_sensitivity(
        model, **text(model), seed=2
    )


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({}, ValueError, "got neither"),
        ({"input_ids": IDS, "pixel_values": pixels()}, ValueError, "got both"),
        ({"input_ids": IDS, "length": 0}, ValueError, "length=0, draws=3"),
        ({"input_ids": IDS, "draws": 0}, ValueError, "draws=0"),
        (TEXT | {"splits": [9]}, ValueError, "split=9 is outside 0..4"),
        (TEXT | {"splits": [4]}, ValueError, "no split to compare"),
        (TEXT | {"length": 60}, ValueError, "input plus prompt have 68 positions"),
        ({"input_ids": IDS, "prompt": torch.zeros(2, 4, 16)}, ValueError, r"prompt has shape \(2, 4, 16\)"),
        ({"pixel_values": pixels()}, TypeError, "BertModel with pixel_values: expected a vision tr"),
    ],
)
def test_wrong_arguments_get_a_clear_error(options, error, words):
    with pytest.raises(error, match=words):
        position_sensitivity(tiny.bert(), **options)


def test_padding_that_nobody_names_is_told():
    with pytest.warns(UserWarning, match="padding counts as input then"):
        position_sensitivity(tiny.bert(), input_ids=IDS, draws=1, splits=[0])


def test_a_model_that_no_tower_serves():
    with pytest.raises(TypeError, match="model=ViTModel cannot read text: expected pixel_values"):
        position_sensitivity(vit(), input_ids=IDS)
    with pytest.raises(TypeError, match="cannot take a prompt"):
        position_sensitivity(torch.nn.Linear(2, 2), input_ids=IDS)


def test_clip_whole_model_has_both_towers():
    text_config, vision_config = clip_text().config, clip_vision().config
    config = transformers.CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=8)
    model = tiny.finish(transformers.CLIPModel, config, 0, torch.float64)
    seen = position_sensitivity(model, pixel_values=pixels(), draws=1)
    read = position_sensitivity(model, input_ids=CLIP_IDS, attention_mask=CLIP_MASK, draws=1)
    assert seen.order_blind and not read.order_blind
    with torch.no_grad():
        stack = tower(model)
        found = stack.states(stack.embed(input_ids=CLIP_IDS, attention_mask=CLIP_MASK)).readout
        wanted = model.get_text_features(input_ids=CLIP_IDS, attention_mask=CLIP_MASK).pooler_output
    assert_close(found, wanted, rtol=0, atol=ZERO)


# ---- absorption, readouts, visibility ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "clip-text"])
@pytest.mark.parametrize("split", [0, 1, 3])
def test_the_prompts_own_positions_can_be_absorbed(kind, split):
    """With the input's positions held, p' at split k is p at k = l; with them free, only the input's shift is left."""
    stack, reading, prompt = prepared(KINDS[kind]())
    reading = reading.picked(torch.tensor([2]))  # one instance without padding
    (table, first), options = stack.table(), {"see_all": True} if stack.causal else {}
    now, before = (stack.place(reading, prompt, k) for k in (split, LENGTH))
    old, new = (placed.prompt_positions[0] + first for placed in (before, now))
    absorbed = absorb(prompt, table.weight, old, new)
    held, shifted = (probe.positions_held(now, before, what) for what in ("prompt_moves", "input_moves"))
    with torch.no_grad():
        prefix = stack.states(reading, prompt, LENGTH, **options)
        free = stack.states(reading, absorbed, split, **options)
        with stack.standing_at(held):
            inside = stack.states(reading, absorbed, split, **options)
            control = stack.states(reading, prompt, split, **options)
        with stack.standing_at(shifted):
            alone = stack.states(reading, prompt, split, **options)
    real = prefix.between
    assert largest(inside.rows[real], prefix.rows[real]) < ZERO
    assert largest(control.rows[real], prefix.rows[real]) > 0.05
    assert largest(free.rows[real], alone.rows[real]) < ZERO
    assert largest(free.rows[real], prefix.rows[real]) > 0.05


@given(st.integers(1, 5), st.data())
def test_absorb_keeps_what_the_model_sees(length, data):
    positions = st.lists(st.integers(0, 9), min_size=length, max_size=length).map(torch.tensor)
    before, after = data.draw(positions), data.draw(positions)
    generator = torch.Generator().manual_seed(length)
    prompt, table = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (length, 10))
    moved = absorb(prompt, table, before, after)
    assert_close(moved + table[after], prompt + table[before], rtol=0, atol=ZERO)


def test_absorb_wants_one_position_per_vector():
    with pytest.raises(ValueError, match=r"after has shape \(3,\), expected \(2,\), one per vector"):
        absorb(torch.zeros(2, 4), torch.zeros(9, 4), torch.tensor([0, 1]), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_postfix_leaves_the_input_as_without_a_prompt(kind):
    stack, reading, prompt = prepared(CAUSAL[kind]())
    with torch.no_grad():
        bare, postfix, surround = (stack.states(reading, *how) for how in ((), (prompt, 0), (prompt, 1)))
    real = bare.between
    assert largest(postfix.rows[real], bare.rows[real]) < ZERO
    assert largest(surround.rows[real], bare.rows[real]) > 0.1
    assert largest(postfix.readout, bare.readout) > 0.1  # the postfix acts through the row that is read


def test_a_postfix_reaches_the_input_where_rows_see_both_ways():
    stack, reading, prompt = prepared(tiny.bert())
    with torch.no_grad():
        bare, postfix = stack.states(reading), stack.states(reading, prompt, 0)
    assert largest(postfix.rows[bare.between], bare.rows[bare.between]) > 0.1


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2", "llama"])
def test_readouts_that_follow_tokens_and_readouts_that_do_not(kind):
    stack, reading, prompt = prepared(KINDS[kind]())
    reading = reading._replace(keep_last=0)
    options = {"see_all": True} if stack.causal else {}
    with torch.no_grad(), stack.without_positions():
        found = [readouts(stack.states(reading, prompt, k, **options)) for k in range(LENGTH + 1)]
    for name in found[0]:
        spread = max(largest(now[name], found[-1][name]) for now in found)
        assert (spread > 0.1) if name in ("first row", "last row") else spread < ZERO


def test_readouts_against_a_loop():
    stack, reading, prompt = prepared(tiny.t5())
    with torch.no_grad():
        states = stack.states(reading, prompt, 1)
    found = readouts(states)
    for row, length in enumerate(MASK.sum(1)):
        hidden = states.hidden[row, : length + LENGTH]
        tokens = torch.cat(
            [hidden[1:length], hidden[length + LENGTH - 1 :]]
        )  # split 1, the end token stays last
        wanted = [tokens[0], tokens[-1], tokens.mean(0), hidden.mean(0), hidden[0], hidden[-1]]
        for value, right in zip(found.values(), wanted, strict=True):
            assert_close(value[row], right, rtol=0, atol=ZERO)


# ---- a gradient that is not there --------------------------------------------------------------------------------


def drift(stack, reading, prompt, alpha, noise):
    """Mean straight-through gradient of alpha over the noise, its standard error, and the exact gradient.

    Given the sampled split, the gradient of the weights is fixed: one backward pass per split serves all samples.
    """
    target = torch.randn(
        len(reading.rows), tiny.WIDTH, generator=torch.Generator().manual_seed(3), dtype=alpha.dtype
    )
    losses, slopes = [], []
    for k in range(LENGTH + 1):
        weights = (
            torch.eye(LENGTH + 1, dtype=alpha.dtype)[k].expand(len(reading.rows), -1).clone().requires_grad_()
        )
        placed = dp.insert_weighted(prompt, reading.rows, reading.mask, weights)
        hidden = stack.encode(placed.embeds)
        read = take_rows(hidden, placed.input_positions[:, :1])[:, 0]  # the class token, followed
        loss = (read - target).square().mean()
        slopes.append(torch.autograd.grad(loss, weights)[0].sum(0))
        losses.append(loss.detach())
    y = (alpha + noise).softmax(-1)
    slope = torch.stack(slopes)[y.argmax(-1)]
    sampled = y * (slope - (y * slope).sum(-1, keepdim=True))  # temperature 1
    losses, chances = torch.stack(losses), alpha.softmax(0)
    exact = chances * (losses - (chances * losses).sum())
    return sampled.mean(0), sampled.std(0) / len(noise) ** 0.5, exact


@pytest.mark.parametrize("kind", BLIND)
def test_the_straight_through_gradient_of_a_blind_model_is_spurious(kind):
    stack, reading, prompt = prepared(BLIND[kind]())
    uniform = torch.rand(20_000, LENGTH + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = torch.tensor([0.0, 0.5, -0.5, 0.2, 0.1], dtype=torch.float64)
    mean, error, exact = drift(stack, reading, prompt, alpha, -(-uniform.log()).log())
    assert exact.abs().max() < ZERO
    assert (mean.abs() / error).max() > 10  # ten standard errors from zero: no noise
    assert mean.norm() > 1e-3
    assert abs(mean.sum()) < ZERO  # every row of the softmax's Jacobian sums to zero
