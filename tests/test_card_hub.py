"""What a model hub reads in a card: the YAML as huggingface_hub parses it, and lines of code that are run."""

import subprocess
import sys

import pytest
import tiny
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

import dplearn as dp
from dplearn import card_hub, packaged
from dplearn.card_hub import METADATA, TASKS


def saved_card(folder, backbone, metadata=None, name="someone/some-model", **options):
    backbone.name_or_path = name
    model = dp.prompted(backbone, dp.PromptConfig(**{"length": 4} | options))
    model.save_pretrained(folder, metadata=metadata)
    return ModelCard.load(folder / "README.md")


BASE = {"license": "unknown", "library_name": "dplearn", "base_model": "someone/some-model"}
RELATION = {"base_model_relation": "adapter"}
KINDS = {
    "t5": (tiny.t5, "text-generation"),
    "gpt2": (tiny.gpt2, "text-generation"),
    "bert": (lambda: tiny.bert(BertModel), "feature-extraction"),
    "bert classes": (lambda: tiny.bert(BertForSequenceClassification), "text-classification"),
    "bert tokens": (lambda: tiny.bert(BertForTokenClassification), "token-classification"),
    "vit": (tiny.vit, "image-classification"),
    "clip": (tiny.clip, "zero-shot-image-classification"),
}


@pytest.mark.parametrize("case", KINDS)
def test_the_front_matter_of_every_kind(case, tmp_path):
    make, tag = KINDS[case]
    tags = ["prompt-tuning", "soft-prompt", case.split()[0]]
    card = saved_card(tmp_path, make())
    assert card.data.to_dict() == BASE | {"pipeline_tag": tag, "tags": tags} | RELATION
    front = (tmp_path / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front) == card.data.to_dict()


def test_learned_decisions_are_a_tag(tmp_path):
    tags = saved_card(tmp_path, tiny.t5(), position="instance").data.tags
    assert tags == ["prompt-tuning", "soft-prompt", "dynamic-prompt", "t5"]


def test_what_is_said_about_a_prompt_stands_in_front(tmp_path):
    result = EvalResult(
        task_type="text-classification",
        dataset_type="super_glue",
        dataset_name="RTE",
        metric_type="accuracy",
        metric_value=0.75,
    )
    metadata = {
        "license": "apache-2.0",
        "language": ["en", "no"],  # the second one is a boolean in YAML without quotes
        "datasets": "super_glue",
        "metrics": ["accuracy"],
        "tags": ["rte", "soft-prompt"],
        "base_model": "google/flan-t5-small",
        "pipeline_tag": "text-classification",
        "eval_results": [result],
    }
    data = saved_card(tmp_path, tiny.t5(), metadata, name="").data
    expected = {key: value for key, value in metadata.items() if key not in ("tags", "eval_results")}
    assert {key: getattr(data, key) for key in expected} == expected
    assert data.tags == ["prompt-tuning", "soft-prompt", "t5", "rte"]
    assert data.eval_results == [result] and data.model_name == "A prompt for T5ForConditionalGeneration"
    assert data.base_model_relation == "adapter"


@pytest.mark.parametrize("name", ["1e3", "123", "1.5", "1_000"])
def test_a_name_that_looks_like_a_number_has_quotes(name, tmp_path):
    """JavaScript's reader of YAML, which a hub has, takes more for numbers than Python's does."""
    saved_card(tmp_path, tiny.t5(), name=name)
    assert f'base_model: "{name}"' in (tmp_path / "README.md").read_text()


WRONG = {
    "no dict": (
        ["license"],
        r"metadata=\['license'\] is not valid, expected a dict with some of \['license'",
    ),
    "an unknown entry": ({"licence": "mit"}, "metadata='licence' is not valid, expected entries named"),
    "another kind": ({"license": 3}, r"metadata\['license'\]=3 is not valid, expected text, or a list of it"),
    "nothing": ({"datasets": []}, r"metadata\['datasets'\]=\[\] is not valid, expected text"),
    "empty": ({"language": ""}, r"metadata\['language'\]='' is not valid"),
    "a dict of results": (
        {"eval_results": {"accuracy": 1}},
        r"expected EvalResult of huggingface_hub, or a list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_stand_in_front_is_refused_and_nothing_is_written(case, tmp_path):
    metadata, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        dp.prompted(tiny.t5()).save_pretrained(tmp_path / "new", metadata=metadata)
    assert not (tmp_path / "new").exists()


def test_all_that_may_be_said_is_known_to_huggingface_hub():
    from inspect import signature

    from huggingface_hub import ModelCardData

    assert set(METADATA) <= set(signature(ModelCardData).parameters)


def test_real_models_of_other_packages_have_their_names_on_the_hub():
    assert {card_hub.base_model({"name_or_path": name}) for name in packaged.PACKAGED} == {
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sentence-transformers/all-MiniLM-L6-v2",
    }
    assert [card_hub.base_model({"name_or_path": name}) for name in ("t5-mini", "", "../x", "gpt2")] == [
        None, None, None, "gpt2",
    ]  # fmt: skip


# --- the lines of code ---


def code_of(card):
    return card.content.split("```python\n")[1].split("```")[0]


SHIPPED = {
    "t5-mini": {"position": "instance", "tasks": ["a", "b"], "vector": "task", "pool_size": 2},
    "place-mini": {},
    "llama-mini": {"position": "postfix"},
    "vit-mini": {"head": "trained"},
    "clip-mini": {},
}


def test_every_shipped_backbone_has_a_case():
    assert set(SHIPPED) == set(dp.zoo.shipped())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_lines_of_code_run_as_they_stand(name, tmp_path, monkeypatch, capsys):
    backbone, _ = dp.zoo.load(name)
    card = saved_card(tmp_path / "this-folder", backbone, name=name, **SHIPPED[name])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code_of(card), names)
    original = dp.from_pretrained(tmp_path / "this-folder", backbone)
    assert torch.equal(names["model"].prompt.vectors, original.prompt.vectors)
    printed = capsys.readouterr().out
    assert printed.startswith("[" if "mini" in name and name[0] in "tpl" else "tensor([")


def test_the_lines_of_code_for_a_model_of_the_hub(tmp_path, monkeypatch):
    """Somebody's repository, read from a folder of that name in a process of its own; only then is it a name of a hub."""
    backbone, tokenizer = dp.zoo.load("t5-mini")
    card = saved_card(tmp_path / "this-folder", backbone, name="someone/some-model")
    code = code_of(card)
    assert code.startswith("from transformers import AutoTokenizer\n\nimport dplearn as dp\n\n")
    backbone.save_pretrained(tmp_path / "someone" / "some-model")
    tokenizer.save_pretrained(tmp_path / "someone" / "some-model")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert torch.equal(
        names["model"].prompt.vectors, dp.from_pretrained("this-folder", backbone).prompt.vectors
    )


def test_a_backbone_without_a_name_is_asked_for(tmp_path, monkeypatch):
    card = saved_card(tmp_path / "this-folder", tiny.t5(), name="")
    monkeypatch.chdir(tmp_path)
    assert "# backbone: the T5ForConditionalGeneration that the prompt was trained on" in code_of(card)
    names = {"backbone": tiny.t5()}
    exec(code_of(card), names)
    assert names["model"].prompt_config.length == 4


@pytest.mark.parametrize("tag", [*TASKS.values(), "zero-shot-image-classification"])
def test_the_code_for_every_task_is_python_in_ruffs_form(tag, tmp_path):
    ending = next((end for end, known in TASKS.items() if known == tag), "Model")
    backbone = {"class": f"Some{ending}", "name_or_path": "someone/some-model", "vision_width": 3}
    for tasks in (None, ["a"]):
        lines = card_hub.code(dp.PromptConfig(length=4, tasks=tasks), backbone, "someone/prompt")
        (tmp_path / "card.py").write_text("\n".join(lines) + "\n")
        options = ["--isolated", "--line-length", "110"]
        for command in (["format", "--check"], ["check", "--select", "E,F,I"]):
            ruff = [sys.executable, "-m", "ruff", *command, *options, str(tmp_path / "card.py")]
            done = subprocess.run(ruff, capture_output=True, text=True)
            assert done.returncode == 0, f"{done.stdout}\n{lines}"
