"""The table of invariants for every kind of text backbone.

The reference is written out by hand: one instance at a time, unpadded, the prompt concatenated around its tokens,
position ids counted from scratch, rows of the last hidden states picked by name, and the model's own head on top. It
uses nothing of the package. The package gets ragged, padded batches. The prompt has three vectors; an index k is the
number of vectors before the input, an index n the number in use.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import tiny
import torch
import torch._dynamo.testing
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    BartForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2Model,
    LlamaForSequenceClassification,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import dplearn as dp

LENGTH, LENGTHS = 3, [6, 3, 8, 4, 5]
EXACT = dict(rtol=1e-11, atol=1e-11)


class Case(NamedTuple):
    """A kind of backbone, and where its answer is read."""

    make: Callable  # dtype -> the model
    # Rows of the last hidden states: "own", each token's; "next", the one before the next token; "last"; "decoder"
    rows: str
    head: Callable | None = None  # model, chosen rows (1, N, d) -> the fields of its output
    labels: str | None = None  # of each "token", of the "text", the "answer" in the input, the "decoder"'s
    first: int = 0  # position of the first token
    types: bool = False  # takes token types


def logits(head):
    return lambda model, rows: {"logits": head(model, rows)}


CASES = {
    "t5": Case(tiny.t5, "decoder", labels="decoder"),
    "flan-t5": Case(lambda dtype=None: tiny.flan_t5(), "decoder", labels="decoder"),
    "bart": Case(tiny.bart, "decoder", labels="decoder"),
    "gpt2": Case(tiny.gpt2, "next", logits(lambda m, h: m.lm_head(h)), "answer"),
    "llama": Case(tiny.llama, "next", logits(lambda m, h: m.lm_head(h)), "answer"),
    "qwen2": Case(tiny.qwen2, "next", logits(lambda m, h: m.lm_head(h)), "answer"),
    "gpt2-base": Case(partial(tiny.gpt2, GPT2Model), "own", lambda m, h: {"last_hidden_state": h}),
    "gpt2-text": Case(
        partial(tiny.gpt2, GPT2ForSequenceClassification),
        "last",
        logits(lambda m, h: m.score(h)[:, 0]),
        "text",
    ),
    "gpt2-tokens": Case(
        partial(tiny.gpt2, GPT2ForTokenClassification), "own", logits(lambda m, h: m.classifier(h)), "token"
    ),
    "llama-text": Case(
        partial(tiny.llama, LlamaForSequenceClassification),
        "last",
        logits(lambda m, h: m.score(h)[:, 0]),
        "text",
    ),
    "bert": Case(
        partial(tiny.bert, BertModel),
        "own",
        lambda m, h: {"last_hidden_state": h, "pooler_output": m.pooler.dense(h[:, 0]).tanh()},
        types=True,
    ),
    "bert-text": Case(
        partial(tiny.bert, BertForSequenceClassification),
        "own",
        logits(lambda m, h: m.classifier(m.bert.pooler.dense(h[:, 0]).tanh())),
        "text",
        types=True,
    ),
    "bert-tokens": Case(
        partial(tiny.bert, BertForTokenClassification),
        "own",
        logits(lambda m, h: m.classifier(h)),
        "token",
        types=True,
    ),
    "bert-mlm": Case(
        partial(tiny.bert, BertForMaskedLM), "own", logits(lambda m, h: m.cls(h)), "token", types=True
    ),
    "roberta-text": Case(
        partial(tiny.roberta, RobertaForSequenceClassification),
        "own",
        logits(lambda m, h: m.classifier.out_proj(m.classifier.dense(h[:, 0]).tanh())),
        "text",
        first=tiny.PAD + 1,
    ),
    "roberta-mlm": Case(
        partial(tiny.roberta, RobertaForMaskedLM),
        "own",
        logits(lambda m, h: m.lm_head(h)),
        "token",
        first=tiny.PAD + 1,
    ),
    "distilbert-text": Case(
        partial(tiny.distilbert, DistilBertForSequenceClassification),
        "own",
        logits(lambda m, h: m.classifier(m.pre_classifier(h[:, 0]).relu())),
        "text",
    ),
    "distilbert-mlm": Case(
        partial(tiny.distilbert, DistilBertForMaskedLM),
        "own",
        logits(lambda m, h: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(h))))),
        "token",
    ),
}
GENERATORS = [name for name, case in CASES.items() if case.labels in ("answer", "decoder")]
ONE_OF_EACH_KIND = ["t5", "bart", "gpt2", "llama", "gpt2-text", "bert-text", "distilbert-mlm"]
LEARNED = dict(position="instance", size="instance", vector="instance", pool_size=2)


def make(case, seed=4, dtype=torch.float64, **options):
    """A prompted model whose vectors have the scale of the embeddings and whose decisions differ between inputs."""
    backbone = case.make(dtype=dtype)
    torch.manual_seed(seed)
    config = dp.PromptConfig(length=LENGTH, **tiny.SAMPLED | options)
    model = dp.prompted(backbone, config, vectors=torch.randn(*config.shape, tiny.WIDTH))
    with torch.no_grad():
        for name, parameter in model.prompt.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)
    model.prompt.to(dtype)
    return model


def batch(case, side="right", extra=0):
    """Ids and mask of five inputs; those of an encoder-decoder end with EOS."""
    return tiny.batch(LENGTHS, side=side, extra=extra, eos=case.rows == "decoder")


ANSWERS = [2, 1, 3, 1, 2]  # tokens at the end of each input that are the answer, where it stands in the input


def labels_of(case, ids, mask):
    """Labels for a batch, whatever its padding; of the tokens of an input the first has none."""
    if case.labels == "text":
        return torch.tensor([1, 0, 1, 1, 0])
    if case.labels == "decoder":
        return torch.tensor([[5, 6], [7, 8], [9, -100], [10, 11], [12, 13]])
    labels = torch.full_like(ids, -100)
    for row, answer in enumerate(ANSWERS):
        if case.labels == "answer":
            places = mask[row].nonzero()[-answer:, 0]
            labels[row, places] = ids[row, places]
        else:
            places = mask[row].nonzero()[1:, 0]
            labels[row, places] = ids[row, places] % 2
    return labels


def arguments(case, ids, mask, labelled=True):
    """What the model takes: token types 1, 0, 1, 0, ... of the real tokens; a decoder needs its labels always, an
    answer in the input is behind the context that the prompt surrounds."""
    found = dict(attention_mask=mask)
    if case.labels == "answer" and labelled:
        found["context_length"] = mask.sum(1) - torch.tensor(ANSWERS)
    if case.labels == "decoder" or (case.labels and labelled):
        found["labels"] = labels_of(case, ids, mask)
    if case.types:
        found["token_type_ids"] = mask.cumsum(1) % 2 * mask
    return found


# --- the reference ---


def order_of(tokens, n, k, kept):
    """The rows of a prompted sequence by name: [("P", 0), ("X", 0), ("X", 1), ("P", 1)] for n = 2 and k = 1."""
    prompt, body = [("P", i) for i in range(n)], [("X", t) for t in range(len(tokens))]
    cut = len(tokens) - kept
    return prompt[:k] + body[:cut] + prompt[k:] + body[cut:]


def concatenated(case, backbone, tokens, prompt, k, answer=0):
    """The names of the rows, and their embeddings (1, S, d)."""
    kept = int(tokens[-1] == tiny.EOS) if case.rows == "decoder" else answer
    order, words = order_of(tokens, len(prompt), k, kept), backbone.get_input_embeddings()(tokens)
    return order, torch.stack([prompt[i] if name == "P" else words[i] for name, i in order])[None]


def by_hand(case, backbone, tokens, prompt, k, answer=0, target=None):
    """The fields of the output for one unpadded instance: (1, N, ...) or, of a whole text, (1, ...)."""
    order, embeds = concatenated(case, backbone, tokens, prompt, k, answer)
    if case.rows == "decoder":
        decoder = torch.tensor([[backbone.config.decoder_start_token_id, target[0]]])
        return {"logits": backbone(inputs_embeds=embeds, decoder_input_ids=decoder).logits}
    options = dict(position_ids=torch.arange(case.first, case.first + len(order))[None])
    if case.types:
        options["token_type_ids"] = torch.tensor([[0 if name == "P" else (i + 1) % 2 for name, i in order]])
    states = backbone.base_model(inputs_embeds=embeds, **options).last_hidden_state
    rows = {
        "own": [order.index(("X", t)) for t in range(len(tokens))],
        "next": [order.index(("X", t)) - 1 for t in range(1, len(tokens))] + [len(order) - 1],
        "last": [len(order) - 1],
    }[case.rows]
    return case.head(backbone, states[:, rows])


def references(case, model, ids, mask, decide, labelled=True):
    """``by_hand`` for each instance; ``decide(row, tokens)`` gives the prompt vectors in use and the split."""
    found = []
    for row, (tokens, real) in enumerate(zip(ids, mask)):
        tokens = tokens[real.bool()]
        answer = ANSWERS[row] if labelled and case.labels == "answer" else 0
        target = labels_of(case, ids, mask)[row] if case.labels == "decoder" else None
        prompt, k = decide(row, tokens[: len(tokens) - answer])
        found.append(by_hand(case, model.backbone, tokens, prompt, k, answer, target))
    return found


def always(prompt, k):
    """The same decision for every instance."""
    return lambda row, tokens: (prompt, k)


def assert_equal(output, expected, mask):
    """Compare an output with its references, on the rows of real tokens where it has one for each token.

    A row of the prompt that is left over is an error of shape.
    """
    for row, fields in enumerate(expected):
        for name, wanted in fields.items():
            found = output[name][row]
            if found.shape != wanted[0].shape:
                found = found[mask[row].bool()]
            assert_close(found, wanted[0], **EXACT)


def decide_by_hand(model, tokens):
    """The prompt and the split of ``LEARNED`` in evaluation: linear layers on the normalised mean embedding."""
    summary = model.backbone.get_input_embeddings()(tokens).mean(0)
    normal = (summary - summary.mean()) / (summary.var(correction=0) + 1e-5).sqrt()
    linear = {name: getattr(model.prompt, name).controller.linear for name in ("position", "size", "vector")}
    scores = {name: layer.weight @ normal + layer.bias for name, layer in linear.items()}
    share = scores["vector"].exp() / scores["vector"].exp().sum()
    prompt = share[0] * model.prompt.vectors[0] + share[1] * model.prompt.vectors[1]
    return prompt[: scores["size"].argmax()], int(scores["position"].argmax())


# --- 1: every split is the concatenation that it names, and the answer is read from the right rows ---


@pytest.mark.parametrize("k", range(LENGTH + 1))
@pytest.mark.parametrize("name", CASES)
def test_each_split_equals_concatenation_by_hand(name, k):
    case = CASES[name]
    model, (ids, mask) = make(case, position=k), batch(case)
    for labelled in (True, False):  # without labels no token is an answer: a postfix stands behind them all
        output = model(ids, **arguments(case, ids, mask, labelled))
        expected = references(case, model, ids, mask, always(model.prompt.vectors, k), labelled)
        assert_equal(output, expected, mask)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].labels])
def test_the_loss_is_the_cross_entropy_by_hand(name):
    case = CASES[name]
    model, (ids, mask) = make(case, position=1), batch(case)
    given = arguments(case, ids, mask)
    scores, targets = [], []
    for row, fields in enumerate(references(case, model, ids, mask, always(model.prompt.vectors, 1))):
        score, target = fields["logits"], given["labels"][row : row + 1]
        if case.labels in ("answer", "token"):
            score, target = score[0], target[0][mask[row].bool()]
        if case.labels == "answer":
            score, target = score[:-1], target[1:]  # a row predicts the token behind it
        scores.append(score.reshape(-1, score.shape[-1]))
        targets.append(target.reshape(-1))
    expected = cross_entropy(torch.cat(scores), torch.cat(targets), ignore_index=-100)
    found = model(ids, **given).loss.double()
    assert_close(found, expected, rtol=1e-6, atol=1e-6)  # transformers computes some losses in float32


def test_labels_of_several_classes_at_once_are_no_answer_even_in_the_shape_of_the_input():
    case = CASES["gpt2-text"]
    several = dict(num_labels=max(LENGTHS), problem_type="multi_label_classification")
    model, (ids, mask) = make(case._replace(make=partial(case.make, **several)), position=1), batch(case)
    expected = references(case, model, ids, mask, always(model.prompt.vectors, 1))
    assert_equal(model(ids, mask, labels=torch.ones(ids.shape)), expected, mask)


@pytest.mark.parametrize("name", ["gpt2", "bert-text"])
def test_the_backbone_is_left_as_it_was_found(name):
    """The rows are picked on a view of the model; a forward that others put in place (accelerate does) is called."""
    case = CASES[name]
    model, (ids, mask) = make(case), batch(case)
    stack = model.backbone.base_model if name == "gpt2" else model.backbone.bert.encoder

    def broken(*arguments, **options):
        raise RuntimeError("broken")

    model(ids, mask)
    assert "forward" not in vars(stack)
    stack.forward = broken
    with pytest.raises(RuntimeError, match="broken"):
        model(ids, mask)
    assert stack.forward is broken


@pytest.mark.parametrize("name", CASES)
def test_the_encoder_summary_is_the_mean_of_the_hidden_states_without_a_prompt(name):
    case = CASES[name]
    model, (ids, mask) = make(case, position="instance", summary="encoder"), batch(case, extra=2)
    body = model.backbone.get_encoder() if case.rows == "decoder" else model.backbone.base_model
    for row, tokens in enumerate(ids):
        tokens = tokens[mask[row].bool()][None]
        wanted = body(input_ids=tokens).last_hidden_state.mean(1)
        assert_close(model.summarize(ids, mask)[row : row + 1], wanted, **EXACT)


# --- 2: batch mates, the amount of padding and its side change nothing ---


@pytest.mark.parametrize("options", [dict(position=1), LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("name", CASES)
def test_an_instance_does_not_depend_on_its_batch_or_its_padding(name, options):
    """BART's encoder numbers its rows itself and takes no position ids: its padding moves to the right."""
    case = CASES[name]
    model, decided = make(case, **options), {}

    def decide(row, tokens):
        decided[row] = decide_by_hand(model, tokens) if options is LEARNED else (model.prompt.vectors, 1)
        return decided[row]

    expected = references(case, model, *batch(case), decide)
    if options is LEARNED:
        sizes, splits = {len(prompt) for prompt, _ in decided.values()}, {k for _, k in decided.values()}
        assert len(sizes) > 1 and len(splits) > 1
    for side in ("right", "left"):
        for extra in (0, 5):
            ids, mask = batch(case, side, extra)
            assert_equal(model(ids, **arguments(case, ids, mask)), expected, mask)


# --- 3: n of the vectors are a prompt of n vectors ---


def rows_seen(case, model):
    """A list that gets the number of rows of each batch that enters the backbone's layers."""
    body = model.backbone.get_encoder() if case.rows == "decoder" else model.backbone.base_model
    layers, seen = next(module for module in body.modules() if isinstance(module, torch.nn.ModuleList)), []

    def look(module, arguments, options):
        seen.append((arguments[0] if arguments else options["hidden_states"]).shape[1])

    layers[0].register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("n", range(LENGTH + 1))
@pytest.mark.parametrize("name", CASES)
def test_a_size_equals_a_shorter_prompt(name, n):
    """Fixed or learned, unused vectors are dropped in evaluation; a size that is being learned masks them."""
    case = CASES[name]
    ids, mask = batch(case, extra=1)
    for size in ["task", n] if n else ["task"]:
        model = make(case, position=2, size=size)
        if size == "task":
            with torch.no_grad():
                model.prompt.size.controller.logits[0, n] = 1e6  # so sampling decides for n too
        expected = references(case, model, ids, mask, always(model.prompt.vectors[:n], 2))
        seen = rows_seen(case, model)
        for training in (False, True):
            assert_equal(model.train(training)(ids, **arguments(case, ids, mask)), expected, mask)
        longest = LENGTH if size == "task" else n
        assert seen[-2:] == [ids.shape[1] + n, ids.shape[1] + longest]


@pytest.mark.parametrize("name", CASES)
def test_sampled_positions_and_sizes_of_training_equal_concatenation_by_hand(name):
    case = CASES[name]
    model, (ids, mask) = make(case, position="task", size="task").train(), batch(case, extra=1)
    sizes = set()
    for seed in range(4):
        torch.manual_seed(seed)
        given = arguments(case, ids, mask)
        decided = {part: choice.index.tolist() for part, choice in model.decide(ids, **given).items()}
        sizes |= set(decided["size"])

        def decide(row, _, decided=decided):
            return model.prompt.vectors[: decided["size"][row]], decided["position"][row]

        expected = references(case, model, ids, mask, decide)
        torch.manual_seed(seed)
        assert_equal(model(ids, **arguments(case, ids, mask)), expected, mask)
    assert len(sizes) > 2


# --- 4: the backbone is frozen; what is learned has a gradient ---


@pytest.mark.parametrize("name", CASES)
def test_a_step_changes_every_part_of_the_prompt_and_not_one_bit_of_the_backbone(name):
    case = CASES[name]
    model, (ids, mask) = make(case, **LEARNED).train(), batch(case)
    before = copy.deepcopy(model.backbone.state_dict())
    start = {part: value.detach().clone() for part, value in model.trainable_parameters().items()}
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanting, lr=0.1, weight_decay=0.1)
    output = model(ids, **arguments(case, ids, mask))
    (output.loss if case.labels else output.last_hidden_state[..., 0].sum()).backward()
    for part, value in model.trainable_parameters().items():
        assert value.grad.isfinite().all() and value.grad.abs().max() > 1e-6, part
    optimizer.step()
    assert all(not torch.equal(start[part], value) for part, value in model.trainable_parameters().items())
    assert all(value.grad is None for value in model.backbone.parameters())
    after = model.backbone.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[part], after[part]) for part in before)


# --- 5: evaluation draws no random numbers; generation ---


@pytest.mark.parametrize("name", CASES)
def test_evaluation_draws_no_random_number(name):
    case = CASES[name]
    model, (ids, mask) = make(case, **LEARNED), batch(case)
    state = torch.get_rng_state()
    first, second = (model(ids, **arguments(case, ids, mask)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for field in ("logits", "last_hidden_state"):
        assert field not in first or torch.equal(first[field], second[field])


def greedy_by_hand(case, backbone, tokens, prompt, k, steps):
    """New tokens by argmax; every step runs the whole sequence anew, without a cache."""
    order, embeds = concatenated(case, backbone, tokens, prompt, k)
    new, words = [], backbone.get_input_embeddings()
    for _ in range(steps):
        if case.rows == "decoder":
            decoder = torch.tensor([[backbone.config.decoder_start_token_id, *new]])
            scores = backbone(inputs_embeds=embeds, decoder_input_ids=decoder, use_cache=False).logits
        else:
            grown = torch.cat([embeds, words(torch.tensor([new], dtype=torch.long))], 1)
            places = torch.arange(len(order) + len(new))[None]
            scores = backbone(inputs_embeds=grown, position_ids=places, use_cache=False).logits
        new.append(int(scores[0, -1].argmax()))
    return new


def generate(case, model, ids, mask, **options):
    """Lists of new tokens, without the decoder's start token."""
    options = dict(max_new_tokens=5, do_sample=False) | options
    return model.generate(ids, mask, **options)[:, int(case.rows == "decoder") :].tolist()


@pytest.mark.parametrize("options", [dict(position=1), LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("name", GENERATORS)
def test_greedy_generation_equals_a_loop_by_hand(name, options):
    case = CASES[name]
    model, (ids, mask) = make(case, **options), batch(case)
    hand = []
    for tokens, real in zip(ids, mask):
        tokens = tokens[real.bool()]
        decided = decide_by_hand(model, tokens) if options is LEARNED else (model.prompt.vectors, 1)
        hand.append(greedy_by_hand(case, model.backbone, tokens, *decided, steps=5))
    eos = hand[2][1]  # one instance stops there, others go on
    expected = [new[: new.index(eos) + 1] if eos in new else new for new in hand]
    longest = max(len(new) for new in expected)
    expected = [new + [tiny.PAD] * (longest - len(new)) for new in expected]
    for side in ("right", "left"):
        for use_cache in (True, False):
            ids, mask = batch(case, side, extra=2)
            options = dict(use_cache=use_cache, eos_token_id=eos, pad_token_id=tiny.PAD)
            assert generate(case, model, ids, mask, **options) == expected


@pytest.mark.parametrize("name", GENERATORS)
def test_beam_search_of_a_batch_equals_that_of_each_instance_alone(name):
    case = CASES[name]
    model = make(case, **LEARNED)
    for side in ("right", "left"):
        ids, mask = batch(case, side, extra=2)
        together = generate(case, model, ids, mask, num_beams=2, eos_token_id=None)
        for row, real in enumerate(mask.bool()):
            alone = ids[row, real][None]
            assert generate(case, model, alone, None, num_beams=2, eos_token_id=None) == [together[row]]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_makes_sampling_reproducible(name):
    case = CASES[name]
    model, (ids, mask) = make(case, **LEARNED), batch(case)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(generate(case, model, ids, mask, do_sample=True, temperature=5.0))
    assert found[0] == found[1] != found[2]


# --- 6: half precision, gradient checkpointing, compilation ---


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.trainable_parameters().values()))


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_bf16_autocast_gives_finite_float32_gradients_near_the_exact_ones(name):
    """Under autocast the controllers round too; with this seed no decision turns."""
    case = CASES[name]
    model, (ids, mask) = make(case, dtype=torch.float32, **LEARNED).train(), batch(case)
    given = {name: value for name, value in arguments(case, ids, mask).items() if name != "labels"}
    model.fit_summaries(iter([{"input_ids": ids, **given}]))  # both passes have the same statistics
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(ids, **arguments(case, ids, mask)).loss
        found.append(gradients(model, loss))
    for exact, half in zip(*found):
        assert half.dtype == torch.float32 and half.isfinite().all()
        assert torch.cosine_similarity(exact.flatten(), half.flatten(), 0) > 0.9


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_gradient_checkpointing_gives_the_same_gradient(name):
    """transformers checkpoints in training mode only, which ``backbone_dropout`` gives the backbone."""
    case = CASES[name]
    model, (ids, mask) = make(case, **LEARNED, backbone_dropout=True).train(), batch(case)
    given = arguments(case, ids, mask)
    if case.rows != "own":
        given["use_cache"] = False  # transformers switches it off with a warning
    blocks = next(module for module in model.backbone.modules() if isinstance(module, torch.nn.ModuleList))
    leaf = next(module for module in blocks[0].modules() if not list(module.children()))
    calls, found = [], []
    leaf.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        torch.manual_seed(0)
        found.append(gradients(model, model(ids, **given).loss))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for expected, value in zip(*found):
        assert_close(value, expected, **EXACT)
    assert len(calls) == 3  # once without, twice with checkpointing


@pytest.mark.parametrize("name", ["t5", "gpt2", "bert-text"])
def test_insertion_is_one_graph_under_compile(name):
    case = CASES[name]
    model, (ids, mask) = make(case, **LEARNED).train(), batch(case)
    given, found = arguments(case, ids, mask), []
    for insert in (model.insert_prompt, torch.compile(model.insert_prompt, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        found.append(insert(ids, **given))
    assert_close(found[1].embeds, found[0].embeds, **EXACT)
    assert torch.equal(found[1].mask, found[0].mask)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-text"])
def test_the_whole_model_is_one_graph_and_is_compiled_once(name):
    """Without labels and without Llama's classifier: there transformers logs a warning, which breaks the graph. (For T5:
    tests/test_model.py.)"""
    case = CASES[name]
    model, (ids, mask) = make(case, position=1), batch(case)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    gradients = []
    for call in (model, compiled, compiled):
        gradients.append(torch.autograd.grad(call(ids, mask).logits[..., 0].sum(), model.prompt.vectors)[0])
    assert_close(gradients[1], gradients[0], **EXACT)
    assert torch.equal(gradients[1], gradients[2]) and counter.frame_count == 1


# --- 7: a prefix is PEFT's prompt tuning, without its defects ---


def peft_of(case, model, task="CAUSAL_LM"):
    """PEFT's prompt tuning of the same backbone with the same vectors."""
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH)
    theirs = get_peft_model(case.make(), config).double().eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(model.prompt.vectors)
    return theirs


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prefix_equals_peft_prompt_tuning(name):
    case = CASES[name]
    model, (ids, mask) = make(case, position="prefix"), batch(case)
    theirs = peft_of(case, model)
    labels = labels_of(case, ids, mask)
    # A fixed prefix stands where it stands, whatever the labels are.
    found, expected = (m(input_ids=ids, attention_mask=mask, labels=labels) for m in (model, theirs))
    real = mask.bool()
    assert_close(found.logits[real], expected.logits[:, LENGTH:][real], **EXACT)
    assert_close(found.loss, expected.loss, **EXACT)
    gradient = torch.autograd.grad(expected.loss, theirs.prompt_encoder["default"].embedding.weight)
    assert_close(torch.autograd.grad(found.loss, model.prompt.vectors), gradient, **EXACT)
    ids, mask = ids[:1, : LENGTHS[0]], mask[:1, : LENGTHS[0]]  # no padding
    found, expected = (m(input_ids=ids, attention_mask=mask) for m in (model, theirs))
    assert_close(found.logits, expected.logits[:, LENGTH:], **EXACT)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_left_padding_changes_peft_prompt_tuning_and_not_ours(name):
    """PEFT puts the prompt before the padding and drops the position ids."""
    case = CASES[name]
    model = make(case, position="prefix")
    theirs, last = peft_of(case, model), []
    for extra in (0, 5):
        ids, mask = tiny.batch([6], side="left", extra=extra, eos=False)
        last.append([m(input_ids=ids, attention_mask=mask).logits[:, -1] for m in (model, theirs)])
    (ours, peft), (ours_padded, peft_padded) = last
    assert_close(ours, peft, **EXACT)
    assert_close(ours_padded, ours, **EXACT)
    assert (peft_padded - peft).abs().max() > 0.01


def test_the_pooler_reads_the_first_token_where_in_peft_it_reads_a_prompt_vector():
    case = CASES["bert-text"]
    model, (ids, mask) = make(case, position="prefix"), batch(case)
    expected = references(case, model, ids, mask, always(model.prompt.vectors, LENGTH))
    models = model, peft_of(case, model, "SEQ_CLS")
    ours, theirs = (m(input_ids=ids, **arguments(case, ids, mask)) for m in models)
    assert_equal(ours, expected, mask)
    assert (theirs.logits - ours.logits).abs().max() > 0.01


# --- 8: what cannot work says so, and why ---


def vit():
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return ViTForMaskedImageModeling(ViTConfig(**sizes, image_size=8, patch_size=4))


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (vit, "expected a model that ends in one of .*, got ViTForMaskedImageModeling$"),
        (
            lambda: BartForSequenceClassification(tiny.bart().config),
            "language-modelling head, BartForSequenceClassification has none$",
        ),
    ],
)
def test_a_backbone_that_cannot_work_is_refused_with_the_reason(backbone, reason):
    """One reason, of the nearest kind."""
    with pytest.raises(TypeError, match=f"cannot take a prompt: [^;]*{reason}"):
        dp.prompted(backbone(), dp.PromptConfig(length=LENGTH))


@pytest.mark.parametrize("name", ["gpt2-text", "gpt2-base", "bert-mlm"])
def test_a_model_that_does_not_generate_says_so(name):
    case = CASES[name]
    with pytest.raises(NotImplementedError, match="does not generate"):
        make(case).generate(*batch(case))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "roberta-mlm", "distilbert-mlm"])
def test_the_last_position_is_used_and_the_next_one_refused(name):
    case = CASES[name]
    longest = 64 - LENGTH - case.first
    model = make(case, position=1)
    ids, mask = tiny.batch([longest], eos=False)
    expected = references(case, model, ids, mask, always(model.prompt.vectors, 1), labelled=False)
    assert_equal(model(ids, **arguments(case, ids, mask, labelled=False)), expected, mask)
    with pytest.raises(ValueError, match="65 positions, but max_position_embeddings=64"):
        model(*tiny.batch([longest + 1], eos=False))
