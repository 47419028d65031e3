"""A prompt in words: counts against the gradients that training really gives, and sentences for every choice."""

import pytest
import tiny
import torch

import dplearn as dp
from dplearn import card

LENGTH = 4
LABELS = torch.tensor([[5, 6], [7, 8], [9, 10]])


def make(**options):
    torch.manual_seed(0)
    config = dp.PromptConfig(**{"length": LENGTH} | options)
    return dp.prompted(tiny.t5(), config, vectors=torch.randn(*config.shape, tiny.WIDTH))


# --- what is counted ---

COUNTED = {
    "prefix": {},
    "a vector that is left out": {"size": 3},
    "all but one left out, in the middle": {"size": 1, "position": 2},
    "a position for the task": {"position": "task"},
    "a position for each input, vectors left out": {"position": "instance", "size": 2},
    "a size for the task": {"size": "task"},
    "a size for each input": {"size": "instance", "position": "instance"},
    "a pool": {"vector": "instance", "pool_size": 3},
    "a pool, vectors left out": {"vector": "task", "pool_size": 3, "size": 2},
    "a pool of one": {"vector": "instance", "pool_size": 1},
    "a hard pool of one": {"vector": "task", "pool_size": 1, "mixing": "hard"},
    "several tasks": {"position": "task", "vector": "task", "pool_size": 2, "tasks": ["a", "b", "c"]},
}


def entries_with_a_gradient(model):
    """How many numbers of the prompt ever get a gradient, over many random batches and decisions."""
    model.train()
    for seed in range(12):
        ids, mask = tiny.batch([6, 3, 8], seed=seed)
        tasks = torch.arange(3) if model.prompt_config.tasks else None
        model(ids, mask, labels=LABELS, task_ids=tasks).loss.backward()
    # A weight that is 1 whatever happens has a gradient of rounding errors.
    return sum(int((p.grad.abs() > 1e-12).sum()) for p in model.prompt.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_counted_as_trained_is_what_gets_a_gradient(case, capsys):
    model = make(**COUNTED[case])
    trained, every = entries_with_a_gradient(model), sum(p.numel() for p in model.prompt.parameters())
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert card.count(model.prompt, model.backbone) == (trained, every - trained, frozen, 0)
    model.print_trainable_parameters()
    unused = f" || not in use: {every - trained:,}" if every > trained else ""
    share = f"{100 * trained / (every + frozen):.4f}"
    expected = (
        f"trainable params: {trained:,} || all params: {every + frozen:,} || trainable%: {share}{unused}"
    )
    assert capsys.readouterr().out == expected + "\n"


def test_some_of_these_cases_have_parameters_without_effect():
    unused = {
        case: card.count(m.prompt, m.backbone).unused
        for case, m in ((c, make(**o)) for c, o in COUNTED.items())
    }
    width = tiny.WIDTH
    assert {case: number for case, number in unused.items() if number} == {
        "a vector that is left out": width,
        "all but one left out, in the middle": 3 * width,
        "a position for each input, vectors left out": 2 * width,
        "a pool, vectors left out": 3 * 2 * width,
        "a pool of one": width + 1,
        "a hard pool of one": 1,
    }


def test_what_a_user_freezes_is_not_counted_as_trained():
    model = make(position="task")
    before = card.count(model.prompt, model.backbone)
    model.prompt.vectors.requires_grad_(False)
    after, moved = card.count(model.prompt, model.backbone), LENGTH * tiny.WIDTH
    assert after == (before.trained - moved, 0, before.frozen + moved, 0)
    assert after.trained == LENGTH + 1  # the logits of the split


# --- what is said ---

WORDS = {
    "prefix": ({}, "where", "fixed", "before the input (prefix)"),
    "a split that is the length": ({"position": 4}, "where", "fixed", "before the input (prefix)"),
    "a split behind the vectors in use": ({"position": 3, "size": 2}, "where", "fixed", "before the input (prefix)"),
    "postfix": ({"position": "postfix"}, "where", "fixed", "after the input (postfix)"),
    "surround": ({"position": 1}, "where", "fixed", "around the input: the first 1 before it, the rest after it"),
    "a position for the task": (
        {"position": "task"}, "where", "task",
        "a split in 0..4 (so many vectors before the input), learned for the task",
    ),
    "a position for each task": (
        {"position": "task", "tasks": ["a", "b"], "size": 3}, "where", "task",
        "a split in 0..3 (so many vectors before the input), learned for each task",
    ),
    "a position for each input": (
        {"position": "instance"}, "where", "instance",
        "a split in 0..4 (so many vectors before the input), decided for each input from the mean of its embeddings",
    ),
    "a position from the encoder": (
        {"position": "instance", "summary": "encoder"}, "where", "instance",
        "a split in 0..4 (so many vectors before the input), decided for each input from the encoder's view",
    ),
    "all": ({}, "how many", "fixed", "all 4"),
    "all, by number": ({"size": 4}, "how many", "fixed", "all 4"),
    "one left out": ({"size": 3}, "how many", "fixed", "the first 3 of 4; 1 vector is not in use"),
    "two left out": ({"size": 2}, "how many", "fixed", "the first 2 of 4; 2 vectors are not in use"),
    "a size for the task": ({"size": "task"}, "how many", "task", "0 to 4, learned for the task"),
    "one prompt": ({}, "which", "single", "one prompt"),
    "a pool": (
        {"vector": "task", "pool_size": 3, "mixing": "tanh"}, "which", "task",
        "a mixture (tanh) out of a pool of 3, learned for the task",
    ),
    "one of a pool": (
        {"vector": "instance", "pool_size": 3, "mixing": "hard"}, "which", "instance",
        "one prompt out of a pool of 3, decided for each input from the mean of its embeddings",
    ),
    "seen by an image": (
        {"vector": "instance", "summary": "image"}, "which", "instance",
        "a mixture (softmax) out of a pool of 4, decided for each image from the model's view of it",
    ),
    "of an image": (
        {"vector": "instance", "towers": "vision"}, "which", "instance",
        "a mixture (softmax) out of a pool of 4, decided for each image from the mean of its embeddings",
    ),
    "in an image": (
        {"towers": "vision"}, "where", "fixed", "in the image, behind the patches, where no order matters"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_every_choice_has_its_words(case):
    options, name, level, words = WORDS[case]
    assert card.decisions(dp.PromptConfig(**{"length": LENGTH} | options))[name] == (level, words)


def test_the_summary_in_full(tmp_path):
    model = make(position="instance", size=3, vector="task", pool_size=2)
    model.backbone.name_or_path = "someone/some-t5"
    model.add_prompt("other")
    model.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    mean = "decided for each input from the mean of its embeddings"
    expected = f"""\
backbone    T5ForConditionalGeneration someone/some-t5, width 16
prompt      default (also there: other)

decision  level     parameters  in words
where     instance          85  a split in 0..3 (so many vectors before the input), {mean}
how many  fixed              0  the first 3 of 4; 1 vector is not in use
which     task               2  a mixture (softmax) out of a pool of 2, learned for the task
vectors                     96  2 x 4 x 16 (last: the width)

trained     183 parameters
not in use  32 parameters
frozen      {frozen:,} parameters
checkpoint  {size:,} bytes"""
    assert model.summary() == expected
    assert repr(model.summary()) == expected  # a notebook shows lines, not one quoted string


@pytest.mark.parametrize(
    ("options", "width", "row", "line"),
    [
        ({"towers": "vision", "depth": 2}, 12, "vectors 96 2 x 4 x 12 (last: the width)", None),
        (
            {"towers": "both"},
            tiny.WIDTH,
            "image 48 vectors of its own for one layer",
            "- In the image: vectors of its own for one layer.",
        ),
        (
            {"towers": "coupled", "depth": 2},
            tiny.WIDTH,
            "image 408 a linear map of the text vectors for each of 2 layers",
            "- In the image: a linear map of the text vectors for each of 2 layers.",
        ),
    ],
)
def test_a_prompt_for_images_and_texts_in_words(options, width, row, line, tmp_path):
    model = dp.prompted(tiny.clip(), dp.PromptConfig(length=LENGTH, **options))
    assert row in [" ".join(found.split()) for found in model.summary().splitlines()]
    assert model.summary().startswith(f"backbone    CLIPModel, width {width}\n")
    model.save_pretrained(tmp_path)
    written = (tmp_path / "README.md").read_text()
    assert f"{LENGTH} vectors of width {width} that steer" in written
    assert ("In the image" in written) == (line is not None) and (line or "") in written


def test_a_folder_of_this_machine_is_not_shown(tmp_path):
    model = make()
    model.backbone.name_or_path = str(tmp_path)
    assert model.summary().startswith("backbone    T5ForConditionalGeneration, width 16\n")
