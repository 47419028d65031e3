"""Prompts in image-text models."""

import pytest
import tiny
import torch
from torch.testing import assert_close

import dplearn as dp

LENGTH = 3
EXACT = dict(rtol=0, atol=1e-12)
MODELS = {"clip": tiny.clip, "siglip": tiny.siglip}
WORDS = [[10, 11, 12], [10, 13], [10, 14, 15, 16], [10, 17]]
PROMPT = [20, 21, 22]


@pytest.mark.parametrize("shortcuts", [(), ("truncate",), ("share",), ("truncate", "share", "classes")])
@pytest.mark.parametrize("split", range(LENGTH + 1))
@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_of_words_equals_the_model_on_texts_with_these_words(kind, split, shortcuts):
    backbone, images = MODELS[kind](), tiny.images()
    vectors = backbone.text_model.embeddings.token_embedding.weight[PROMPT].detach().clone()
    ids, mask = tiny.texts(WORDS, kind == "siglip", around=(split, PROMPT))
    with torch.no_grad():
        wanted = backbone(input_ids=ids, attention_mask=mask, pixel_values=images)
    model = dp.prompted(backbone, dp.PromptConfig(length=LENGTH, position=split), vectors=vectors).eval()
    model.shortcuts = shortcuts
    ids, mask = tiny.texts(WORDS, kind == "siglip", extra=2)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, pixel_values=images)
        model.set_classes(ids, mask)
        assert_close(model(pixel_values=images).logits, wanted.logits_per_image, **EXACT)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        assert_close(found[name], wanted[name], **EXACT)
    assert type(found) is type(wanted)
