"""What runs cost: FLOPs against formulas by hand, memory, and the steps that were measured and recorded."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dplearn import zoo
from dplearn.experiments import costs, jobs, records, study


def test_flops_of_a_causal_model_are_those_of_its_matrices_and_its_attention():
    """Two for each weight that a row meets and for each pair of rows and number of a head; backward as many again,
    since no weight is trained. The head of the vocabulary reads one row of each input."""
    batch, rows = 3, 20
    config = costs.config_of("smollm2-135m-instruct")
    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = config.num_key_value_heads * d // config.num_attention_heads
    per_row = 2 * layers * (2 * d * d + 2 * d * kv + 3 * d * inner)
    attention = 2 * 2 * layers * rows * rows * d
    forward = batch * (rows * per_row + attention + 2 * d * config.vocab_size)
    step = costs.step_of("smollm2-135m-instruct", batch, rows)
    assert step.forward == pytest.approx(forward, rel=0.001)
    assert 1.95 < step.training / step.forward < 2.2  # attention goes back through both of its factors


@pytest.mark.parametrize("name", ["t5-mini", "place-mini", "llama-mini"])
def test_flops_without_numbers_are_those_of_the_real_model(name):
    model = zoo.load(name)[0]
    width = model.get_input_embeddings().weight.shape[1]
    given = {"inputs_embeds": torch.randn(2, 11, width)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.zeros(2, 2, dtype=torch.long)
    else:
        given["logits_to_keep"] = 1
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**given, use_cache=False)
    # Some kernels of attention are counted on one of the two devices alone.
    assert costs.step_of(name, 2, 11).forward == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_all_weights_cost_half_as_much_again_and_weights_of_hub_models_are_their_published_numbers():
    frozen, trained = (costs.step_of("t5-mini", 2, 64, 0, each) for each in (False, True))
    assert frozen.forward == trained.forward
    assert trained.training / frozen.training == pytest.approx(1.5, abs=0.1)
    millions = {"google/t5-small-lm-adapt": 77, "google/t5-base-lm-adapt": 248, "google/t5-large-lm-adapt": 783,
                "google/t5-xl-lm-adapt": 2850, "openai/clip-vit-base-patch16": 149.6}  # fmt: skip
    for name, number in millions.items():
        assert costs.parameters_of(name) / 1e6 == pytest.approx(number, rel=0.005)


def test_images_are_counted_where_a_step_reads_them():
    """A prompt in the texts alone: kept features cost nothing in a step. Both towers: both passes, each with a gradient."""
    name = "openai/clip-vit-base-patch16"
    text, both = (costs.step_of(name, 8, 24, 10, images=each) for each in (False, True))
    rows, d, inner, layers = 8 * 197, 768, 3072, 12
    vision = 2 * rows * layers * (4 * d * d + 2 * d * inner) + 8 * 2 * 2 * layers * 197 * 197 * d
    assert both.forward - text.forward == pytest.approx(vision, rel=0.01)
    assert (both.training - text.training) / vision == pytest.approx(2, rel=0.05)
    assert both.saved > 2 * text.saved


def test_texts_are_counted_for_each_image_where_images_decide_about_them():
    """32 images of a batch: 32 times the texts in a step, nearly as many numbers that wait, and texts again in each score."""
    by_method = {job.labels["method"]: job for job in jobs.jobs(study.read("clip-decisions"), {})}
    by_class, by_image = (costs.cost_of(by_method[f"pool per {who}"]) for who in ("class", "image"))
    weights = 4 * costs.parameters_of("clip-mini")
    assert 20 < (by_image.memory - weights) / (by_class.memory - weights) <= 32
    assert by_image.flops > 15 * by_class.flops


def test_the_assumed_speed_of_a_processor_is_that_of_a_measured_step():
    """The benchmark's training step of a Llama of SmolLM2's shape, 4 inputs of 100 tokens behind 20 vectors."""
    groups = {row["group"]: row["figures"] for row in records.load("benchmarks")["rows"]}
    (figure,) = (
        each for each in groups["peft"] if each["name"].startswith("llama") and "prefix" in each["name"]
    )
    rate = costs.step_of("smollm2-135m-instruct", 4, 120).training / (figure["ms"][0] / 1e3)
    assert costs.RATES["cpu"] == pytest.approx(rate, rel=0.25)


def test_a_plan_adds_up_and_multiplies_by_seeds_and_draws():
    one = study.read("smollm2-place")
    found = costs.costs(one)
    counts = jobs.count(one)
    assert sum(cost.runs for cost in found.values()) == counts["choice"] + counts["report"]
    fixed, learned = (
        found["smollm2-135m-instruct", "prefix"],
        found["smollm2-135m-instruct", "per task, score-function"],
    )
    job = next(job for job, _ in jobs.first_of_each(one) if job.labels["method"] == "prefix")
    step = costs.step_of("smollm2-135m-instruct", 4, 132)
    assert learned.flops - fixed.flops == pytest.approx(
        2 * 5 * 60 * step.training
    )  # tasks, seeds, steps: one more draw
    assert costs.cost_of(job).memory < learned.memory and costs.disk(one) == 0
    assert found["no backbone", "most frequent label"].flops == 0
    assert costs.Cost(1, 3.6e15, 0).hours(1e12) == 1
