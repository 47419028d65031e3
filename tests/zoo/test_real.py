"""Real models of pip packages, where those are installed: loaded, alive, the same weights after the conversion."""

import pytest
import torch

import dplearn as dp
from dplearn import packaged, zoo
from dplearn.tasks import Task


def installed(name):
    return pytest.mark.skipif("not installed" in packaged.status(name), reason=packaged.status(name))


@pytest.fixture(scope="module")
def smollm2():
    return zoo.load("smollm2-135m-instruct")


@pytest.mark.slow
@installed("smollm2-135m-instruct")
def test_smollm2_is_alive(smollm2):
    model, tokenizer = smollm2
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=2, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == " Paris."

    def loss(text):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    text = "The cat sat on the mat and looked out of the window at the birds in the garden."
    shuffled = " ".join(sorted(text.split()))
    assert loss(text) + 2 < loss(shuffled)


@pytest.mark.slow
@installed("smollm2-135m-instruct")
def test_smollm2_survives_the_conversion_and_the_tokenizer_loses_nothing(smollm2):
    """Tensor by tensor against what transformers reads from the GGUF file itself, and every text as it was."""
    model, tokenizer = smollm2
    entry = packaged.PACKAGED["smollm2-135m-instruct"]
    try:
        (path,) = entry.checked().values()
    except ModuleNotFoundError:
        pytest.skip("converted before; the package is gone")
    again, theirs = packaged.read_gguf(path)
    state = model.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(state[name], tensor), name
    for text in (
        "The capital of France is",
        " answer: yes",
        "naïve – Zürich\n\tx = 3.5;",
        "<|im_start|>user",
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids == theirs(text)["input_ids"] and tokenizer.decode(ids) == text


@pytest.mark.slow
@installed("smollm2-135m-instruct")
def test_a_prompt_on_smollm2_keeps_the_cue_last(smollm2, tmp_path):
    """A task in one call, and a checkpoint that names its backbone."""
    model, tokenizer = smollm2
    rows = [{"premise": "It rained.", "hypothesis": "It was wet.", "label": 0}] * 2
    task = Task(
        "made/nli",
        ("yes", "no"),
        ("yes", "no"),
        "{premise} {hypothesis}",
        {"train": rows},
        "accuracy",
        "here",
    )
    prompted = dp.prompted(model, dp.PromptConfig(length=4))
    encoded = task.encode(tokenizer, "train", prompted, answer_prefix=" answer:")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "It rained. It was wet. answer:"
    assert encoded[0]["keep_last"] == 2 and tokenizer.decode(encoded[0]["labels"]) == " yes"
    prompted.save_pretrained(tmp_path)
    again = dp.from_pretrained(tmp_path)
    assert torch.equal(again.prompt.vectors, prompted.prompt.vectors)


@pytest.mark.slow
@installed("minilm-l6")
def test_minilm_knows_what_is_alike():
    model, tokenizer = zoo.load("minilm-l6")
    texts = ["A man is playing a guitar.", "Somebody makes music.", "The stock market fell sharply."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(2)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    alike = vectors @ vectors.T
    assert alike[0, 1] > alike[0, 2] + 0.2
    classifier, _ = zoo.load("minilm-l6", num_labels=3)
    assert classifier.num_labels == 3 and torch.equal(
        classifier.bert.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight
    )
