"""Rivals of our prompts: each answers as a forward by hand does, trains in the same budget, and leaves the backbone."""

import builtins
import copy
import json
import math

import pytest
import tiny
import torch
from test_experiments import task, tokenizer
from test_study import TEXT, read
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache

import dplearn as dp
from dplearn.experiments import execution, fitting, jobs, rivals, rivals_peft, rivals_prompts, tuning
from dplearn.experiments.watching import Looks

SETTINGS = {"steps": 6, "batch_size": 8, "learning_rate": 0.1}
KINDS = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "prefix-tuning": {"num_virtual_tokens": 3},
    "lora": {"r": 2, "lora_alpha": 6},
}
FLOATS = dict(rtol=1e-4, atol=1e-5)


def options(kind, name, **more):
    return rivals.options_of(kind, {"type": name} | KINDS.get(name, {}) | more)


def adapted(backbone, name, seed=0, **more):
    """A method of peft with values far from those at the start (LoRA's are zero there)."""
    torch.manual_seed(seed)
    model = rivals_peft.adapted(backbone, options("peft", name, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    return model


def tune(name, backbone, seed=1, splits=("validation",), tok=None, **more):
    settings = {key: more.pop(key) for key in list(more) if key in fitting.Settings.__dataclass_fields__}
    settings = fitting.Settings(**SETTINGS | settings)
    table = {"type": name} | KINDS[name] | more.pop("table", {})
    tok = tokenizer() if tok is None else tok
    return rivals_peft.tune_peft(backbone, tok, task(), table, settings, seed, splits, **more)


def snapshot(backbone):
    """All that a run could change of a backbone."""
    return (
        {name: tensor.clone() for name, tensor in backbone.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in backbone.named_parameters()},
        {name: (type(module), module.training) for name, module in backbone.named_modules()},
    )


def same(before, after):
    tensors, *rest = before
    return (
        all(torch.equal(tensor, after[0][name]) for name, tensor in tensors.items())
        and tensors.keys() == after[0].keys()
        and rest == list(after[1:])
    )


@pytest.fixture
def seen(monkeypatch):
    """The models that are trained, ours and those of peft."""
    models, ours, theirs = [], tuning.prompted, rivals_peft.adapted
    monkeypatch.setattr(tuning, "prompted", lambda *a, **k: models.append(ours(*a, **k)) or models[-1])
    monkeypatch.setattr(rivals_peft, "adapted", lambda *a, **k: models.append(theirs(*a, **k)) or models[-1])
    return models


# --- the library peft ---


@pytest.mark.parametrize(
    ("make", "optimizer", "side"),
    [
        (tiny.t5, "adafactor", "right"),
        (tiny.t5, "adam", "left"),
        (tiny.llama, "adafactor", "left"),
        (tiny.gpt2, "adam", "right"),
    ],
)
def test_prompt_tuning_of_peft_is_our_prefix(make, optimizer, side, seen):
    """The same start, losses, curves and vectors, wherever the padding is."""
    backbone, tok = make(dtype=torch.float32), tokenizer()
    tok.padding_side = side
    looks, given = Looks(6, 30), {"optimizer": optimizer, "init_words": None}
    theirs = tune("prompt-tuning", backbone, looks=looks, tok=tok, **given)
    ours = tuning.tune_prompt(
        backbone, tok, task(), dp.PromptConfig(length=3), fitting.Settings(**SETTINGS | given), 1,
        ("validation",), looks=looks,
    )  # fmt: skip
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-3)
    for name in ("loss", "score", "cross_entropy"):
        assert theirs["curves"][name][1:] == pytest.approx(ours["curves"][name][1:], rel=2e-3, abs=2e-4)
    assert theirs["trained_parameters"] == ours["trained_parameters"] == 3 * tiny.WIDTH
    vectors = seen[0].model.prompt_encoder["default"].embedding.weight, seen[1].prompt.vectors
    assert_close(*vectors, rtol=1e-3, atol=1e-4)
    table = backbone.get_input_embeddings().weight
    assert not any(torch.equal(row, word) for row in vectors[0] for word in table)


def test_prompt_tuning_starts_where_it_is_told_to(seen):
    backbone = tiny.t5(dtype=torch.float32)
    tune("prompt-tuning", backbone, steps=0)
    tune("prompt-tuning", backbone, steps=0, init_words="a b")
    tune("prompt-tuning", backbone, steps=0, table={"start": "random"})
    table = backbone.get_input_embeddings().weight
    rows = [model.model.prompt_encoder["default"].embedding.weight for model in seen]
    torch.manual_seed(1)
    assert torch.equal(rows[0], dp.prompted(backbone, dp.PromptConfig(length=3)).prompt.vectors)
    assert torch.equal(rows[1], table[tokenizer()("a b a", add_special_tokens=False)["input_ids"]])
    assert not any(torch.equal(row, word) for row in rows[2] for word in table)


@pytest.mark.parametrize("make", [tiny.t5, tiny.llama])
@pytest.mark.parametrize("name", KINDS)
def test_a_method_learns_and_leaves_the_backbone_as_it_was(make, name, seen):
    backbone = make(dtype=torch.float32)
    before = snapshot(backbone)
    rate = 0.05 if name == "lora" else 0.3
    given = dict(optimizer="adam", warmup=0, learning_rate=rate, steps=20, batch_size=60)
    row = tune(name, backbone, answer_prefix="" if make is tiny.t5 else "b g", looks=Looks(4, 30), **given)
    assert row["losses"][-1] < 0.8 * row["losses"][0], row["losses"]
    assert same(before, snapshot(backbone))
    assert row["peft"]["type"] == name and row["seconds"] >= 0 and len(row["curves"]["score"]) == 5
    trained = [p for p in seen[0].parameters() if p.requires_grad]
    idle = 3 * 2 * tiny.WIDTH if name == "prefix-tuning" and make is tiny.t5 else 0
    assert row["trained_parameters"] == sum(p.numel() for p in trained) - idle
    json.dumps(row)
    again = tune(name, backbone, answer_prefix="" if make is tiny.t5 else "b g", looks=Looks(4, 30), **given)
    assert (again["losses"], again["scores"]) == (row["losses"], row["scores"])


@pytest.mark.parametrize("make", [tiny.t5, tiny.bart, tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning", "prefix-tuning", "prefix projected"])
def test_what_is_counted_has_a_gradient(make, name):
    """All of it, but for units of P-tuning's layers that are off."""
    backbone = make(dtype=torch.float32)
    more = {"prefix_projection": True, "encoder_hidden_size": 7} if name == "prefix projected" else {}
    name = "prefix-tuning" if more else name
    model = adapted(backbone, name, **more)
    ids, mask = tiny.batch([4, 6])
    both = backbone.config.is_encoder_decoder
    more = {"decoder_input_ids": torch.tensor([[0, 7]] * 2)} if both else {}
    model(input_ids=ids, attention_mask=mask, **more)["logits"][:, -1, 3].sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    still = sum(int((parameter.grad == 0).sum()) for parameter in trained)
    idle = rivals_peft.idle(backbone, model.model.active_peft_config)
    assert still == idle if name != "p-tuning" else idle == 0 and still < 150
    assert (idle > 0) == (both and name == "prefix-tuning")
    embedding = model.model.prompt_encoder["default"].embedding.weight
    assert embedding.shape[0] == 3 and (embedding.grad != 0).any(1).all()  # none for a decoder


def by_hand(backbone, model, name, ids, decoder_ids):
    """Logits of one text (T,) in the last row, from the plain backbone and the numbers that a method has."""
    both = backbone.config.is_encoder_decoder
    more = {"decoder_input_ids": decoder_ids} if both else {}
    if name == "lora":
        changed = copy.deepcopy(backbone)
        for path, module in model.model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                added = 6 / 2 * (b @ a)
                target = changed.get_submodule(path)
                target.weight = nn.Parameter(
                    target.weight
                    + (added.T if target.weight.shape != added.shape or "c_attn" in path else added)
                )
        return changed(input_ids=ids[None], **more).logits[0, -1]
    prompt = model.model.get_prompt(1)
    if name == "prefix-tuning":
        numbers = model.model.prompt_encoder["default"].embedding.weight
        config = backbone.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        layers, width = config.num_hidden_layers, tiny.WIDTH // config.num_attention_heads
        rows = numbers.view(3, -1, heads, width).permute(1, 2, 0, 3).unsqueeze(1)  # (2 layers, 1, H, l, d_k)
        cache, used = DynamicCache(), set()
        for layer in range(layers):
            first = (4 if both else 2) * layer % len(rows)
            used |= {first, first + 1}
            cache.update(rows[first], rows[first + 1], layer)
        assert len(used) == 2 * layers  # no two layers share theirs
        cache = EncoderDecoderCache(cache, DynamicCache()) if both else cache
        mask = torch.ones(1, len(ids) + (0 if both else 3))
        return backbone(input_ids=ids[None], attention_mask=mask, past_key_values=cache, **more).logits[0, -1]
    embeds = torch.cat([prompt, backbone.get_input_embeddings()(ids[None])], 1)
    return backbone(inputs_embeds=embeds, **more).logits[0, -1]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [tiny.t5, tiny.bart, tiny.llama, tiny.gpt2, tiny.qwen2])
@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_a_forward_by_hand(make, name, side):
    """In a padded batch, at the right row, text by text."""
    backbone, lengths = make(dtype=torch.float32), [6, 3, 5]
    model = adapted(backbone, name)
    ids, mask = tiny.batch(lengths, side=side, extra=2)
    decoder_ids = torch.tensor([[0, 7]])
    both = backbone.config.is_encoder_decoder
    more = {"decoder_input_ids": decoder_ids.expand(3, -1)} if both else {}
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, **more)["logits"]
        for row, real, logits in zip(ids, mask, found[:, -1], strict=True):
            alone = by_hand(backbone, model, name, row[real != 0], decoder_ids)
            assert_close(logits, alone, rtol=1e-3, atol=1e-4)
        bare = backbone(
            input_ids=ids[:1, mask[0] != 0], **(more and {"decoder_input_ids": decoder_ids})
        ).logits
    assert found.shape[1] == (2 if both else 1)
    assert (found[0, -1] - bare[0, -1]).abs().max() > 1e-2  # it does something


def test_what_is_frozen_has_its_dropout_only_where_it_is_asked_for():
    backbone = tiny.t5(dtype=torch.float32, dropout=0.5)
    ids, mask = tiny.batch([6, 4])
    given = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[0]] * 2))
    for dropout in (False, True):
        model = adapted(backbone, "lora", backbone_dropout=dropout).train()
        first, second = (model(**given)["logits"] for _ in range(2))
        assert torch.equal(first, second) != dropout
        assert_close(model.eval()(**given)["logits"], model(**given)["logits"], rtol=0, atol=0)
    model = adapted(backbone, "lora", lora_dropout=0.5).train()
    first, second = (model(**given)["logits"] for _ in range(2))
    assert not torch.equal(first, second)  # LoRA's own


def test_a_view_of_a_backbone_shares_its_memory_and_nothing_else():
    backbone = tiny.t5(dtype=torch.float32)
    view = rivals_peft.sharing(backbone)
    for (name, theirs), (other, ours) in zip(
        view.named_parameters(), backbone.named_parameters(), strict=True
    ):
        assert name == other and theirs is not ours and theirs.data_ptr() == ours.data_ptr()
    assert view.shared.weight is view.encoder.embed_tokens.weight  # what is tied stays tied
    assert not {id(module) for module in view.modules()} & {id(module) for module in backbone.modules()}


def test_prefix_tuning_has_the_width_of_the_decoders_keys():
    """Of a T5 whose heads are not as wide as the model, and whose decoder has another number of layers."""
    torch.manual_seed(0)
    config = tiny.t5().config
    config.d_kv, config.num_decoder_layers = 4, 3
    backbone = type(tiny.t5())(config).eval()
    model = adapted(backbone, "prefix-tuning")
    assert model.model.prompt_encoder["default"].embedding.weight.shape == (3, 3 * 2 * 2 * 4)
    ids, mask = tiny.batch([4, 6])
    given = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[0, 7]] * 2))
    assert model(**given)["logits"].shape == (2, 2, tiny.VOCABULARY)


def test_more_of_lora(seen):
    row = tune(
        "lora", tiny.llama(dtype=torch.float32), table={"target_modules": "all-linear", "use_dora": True}
    )
    assert row["peft"]["use_dora"] and any("up_proj" in path for path in row["peft"]["target_modules"])
    row = tune("lora", tiny.t5(dtype=torch.float32), table={"target_modules": ["wo"], "use_rslora": True})
    assert row["peft"]["target_modules"] == ["wo"] and row["peft"]["use_rslora"]


def test_a_missing_library_is_said_with_the_way_to_get_it(monkeypatch):
    usual = builtins.__import__

    def without(name, *arguments, **more):
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return usual(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="method of kind 'peft' runs: pip install peft"):
        tune("lora", tiny.t5(dtype=torch.float32))


# --- on our own parts ---


def rival(name, backbone, seed=0, **more):
    torch.manual_seed(seed)
    return rivals_prompts.prompted_rival(backbone, tokenizer(), options("rival", name, **more))


def mean_of(backbone, ids):
    return backbone.get_input_embeddings()(ids).mean(0)


def prompted_by_hand(backbone, vectors, ids, decoder_ids):
    """Logits of one text behind its prompt (l, d)."""
    embeds = torch.cat([vectors, backbone.get_input_embeddings()(ids)])[None]
    more = {"decoder_input_ids": decoder_ids} if backbone.config.is_encoder_decoder else {}
    return backbone(inputs_embeds=embeds, **more).logits[0, -1]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [tiny.t5, tiny.llama])
@pytest.mark.parametrize("name", ["SMoP", "CaPT"])
def test_a_rival_prompt_is_what_its_formula_says(name, make, side):
    backbone = make()
    model = rival(name, backbone).double().eval()
    ids, mask = tiny.batch([6, 3, 5, 4], side=side, extra=1)
    decoder_ids, picked = torch.tensor([[0, 7]]), set()
    both = backbone.config.is_encoder_decoder
    more = {"decoder_input_ids": decoder_ids.expand(4, -1)} if both else {}
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, **more).logits
        for row, real, logits in zip(ids, mask, found, strict=True):
            text = row[real != 0]
            mean = mean_of(backbone, text)
            if name == "CaPT":
                vectors = model.prompt.vectors + mean
            else:
                p = (model.prompt.vector.controller.weight @ mean).softmax(0)
                k = int(p.argmax())
                picked.add(k)
                vectors = p[k] * model.prompt.vectors[k]
            wanted = prompted_by_hand(backbone, vectors, text, decoder_ids)
            answer = logits[-1] if both else logits[int(real.nonzero()[-1])]
            assert_close(answer, wanted, rtol=1e-8, atol=1e-9)
    assert name == "CaPT" or len(picked) > 1  # the router tells texts apart


def test_the_router_is_noisy_in_training_alone_and_has_a_gradient():
    router = rivals_prompts.Router(tiny.WIDTH, 4)
    assert_close(router.controller.weight @ router.controller.weight.T, torch.eye(4), **FLOATS)
    summary = torch.randn(5, tiny.WIDTH)
    torch.manual_seed(3)
    noisy = router.train()(summary)
    torch.manual_seed(3)
    wanted = (summary @ router.controller.weight.T) * (1 + torch.randn(5, 4))
    assert_close(noisy.logits, wanted)
    p = wanted.softmax(1)
    assert_close(noisy.weights.sum(1), p.max(1).values)
    assert torch.equal(noisy.index, p.argmax(1)) and ((noisy.weights != 0).sum(1) == 1).all()
    noisy.weights.sum().backward()
    assert (router.controller.weight.grad != 0).any()
    quiet = router.eval()(summary)
    assert_close(quiet.logits, summary @ router.controller.weight.T)


def test_the_cost_of_an_uneven_load():
    model = rival("SMoP", tiny.t5(dtype=torch.float32), balance=0.5)
    ids, mask = tiny.batch([6, 3, 5])
    output = model.train()(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[0]] * 3))
    torch.manual_seed(7)
    choice = model.decide(ids, mask)["vector"]
    p, shares = choice.logits.softmax(1).mean(0), torch.bincount(choice.index, minlength=4) / 3
    assert_close(model.prompt.penalty({"vector": choice}), 0.5 * 4 * (p * shares).sum())
    assert output["penalty"].requires_grad
    assert model.eval().prompt.penalty({"vector": choice}) is None
    assert rival("SMoP", tiny.t5(), balance=0.0).train().prompt.penalty({"vector": choice}) is None


@pytest.mark.parametrize("name", ["SMoP", "CaPT"])
@pytest.mark.parametrize("make", [tiny.t5, tiny.llama])
def test_rival_prompts_learn_and_are_reported(name, make):
    backbone = make(dtype=torch.float32)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    settings = fitting.Settings(steps=20, batch_size=60, learning_rate=0.3, optimizer="adam", warmup=0)
    cue = "" if make is tiny.t5 else "b g"
    rows = [
        rivals_prompts.tune_rival(
            backbone, tokenizer(), task(), {"type": name}, settings, 1, answer_prefix=cue
        )
        for _ in range(2)
    ]
    row = rows[0]
    assert row["losses"][-1] < 0.9 * row["losses"][0] and rows[1]["losses"] == row["losses"]
    assert all(torch.equal(tensor, backbone.state_dict()[key]) for key, tensor in before.items())
    assert row["rival"]["type"] == name and row["passes"] == 1
    assert row["trained_parameters"] == {"SMoP": 4 * 5 * 16 + 4 * 16, "CaPT": 16}[name]
    if name == "SMoP":
        found = row["evidence"]["decisions"]["vector"]
        assert found["options"] == 4 and 0 < found["entropy"] <= math.log(4) + 1e-6
        assert sum(row["evidence"]["decisions"]["vector"]["counts"]) == found["inputs"]
    json.dumps(row)


# --- in a study ---

RIVALS = """
[[method]]
name = "LoRA"
kind = "peft"
peft = { type = "lora", r = 4 }
[[method]]
name = "SMoP"
kind = "rival"
rival = { type = "SMoP" }
"""


def test_rivals_are_methods_of_a_study(tmp_path):
    one = read(tmp_path, TEXT + RIVALS)
    cell = next(one.cells())
    methods = {method.name: method for method in one.methods_in(cell)}
    assert one.grid_of(cell, methods["LoRA"]) == one.grid["fixed"]
    assert one.grid_of(cell, methods["SMoP"]) == one.grid["learned"]
    specs = {job.labels["method"]: job.spec for job in jobs.jobs(one, {})}
    assert specs["LoRA"]["peft"] == {"type": "lora", "r": 4} and "prompt" not in specs["LoRA"]
    assert specs["SMoP"]["rival"] == {"type": "SMoP"} and specs["SMoP"]["kind"] == "rival"
    assert set(specs["LoRA"]["settings"]) == {"steps", "learning_rate"}
    keys = {job.key for job in jobs.jobs(read(tmp_path), {})}
    assert keys < {job.key for job in jobs.jobs(one, {})}
    assert {"peft", "rival"} <= execution.RUNS.keys()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"lora", r = 4', '"loro"', r"type='loro' is unknown, expected one of \['prompt-tuning', 'p-tuning'"),
        ("r = 4", "rank = 4", r"rank=4 is no option of 'lora', expected some of \['r', 'lora_alpha'"),
        ("r = 4", "r = 0", "r=0 is not valid, expected an integer of at least 1"),
        ("r = 4", "lora_dropout = 1.5", "lora_dropout=1.5 is not valid, expected a share"),
        ("r = 4", "target_modules = 'q'", "target_modules='q' is not valid, expected a list of names of modules"),
        ("r = 4 }", "r = 4 }\nsettings.entropy_bonus = 1.0", "entropy_bonus=1.0 has no effect on a method of kind 'peft'"),
        ("r = 4 }", "r = 4 }\nprompt.length = 3", "length=3 has no effect on a method of kind 'peft'"),
        ("r = 4 }", 'r = 4 }\ngrid = "learned"', "controller_learning_rate=.* has no effect on a method of kind 'peft'"),
        ('kind = "peft"', 'kind = "prompt"', "peft=.*, expected a table with its type for a method of kind 'peft'"),
        ("peft = { type", "rival = { type", "expected a table with its type for a method of kind 'peft'"),
        ('type = "SMoP"', 'type = "SMoP", length = 0', "length=0 is not valid"),
        ('type = "SMoP"', 'type = "IDPG"', r"type='IDPG' is unknown, expected one of \['SMoP', 'CaPT'\]"),
        ('type = "SMoP"', 'type = "CaPT", length = 2', r"length=2 is no option of 'CaPT', expected some of \['init'\]"),
    ],
)  # fmt: skip
def test_what_a_study_says_wrong_of_a_rival_is_refused(tmp_path, old, new, message):
    assert old in RIVALS
    with pytest.raises(ValueError, match=message):
        read(tmp_path, TEXT + RIVALS.replace(old, new, 1))


@pytest.mark.parametrize(("kind", "table"), [("peft", {"type": "lora", "r": 2}), ("rival", {"type": "CaPT"})])
def test_a_job_of_a_rival_runs(kind, table):
    spec = {
        "backbone": "place-mini", "task": "place/fixed", "kind": kind, kind: table, "seed": 1, "purpose": "report",
        "splits": ["validation"], "settings": {"steps": 2, "optimizer": "adam", "learning_rate": 0.001},
    }  # fmt: skip
    row = execution.run_job(spec)
    assert row[kind]["type"] == table["type"] and row["kind"] == kind and row["trained_parameters"] > 0
    assert row["curves"]["steps"][-1] == 2 and row["at_a_third"] is not None
