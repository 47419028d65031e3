"""The architectures of vit-mini and clip-mini, and the image processor that ships with them."""

from collections.abc import Sequence

import torch

SIZE, PATCH, WIDTH = 28, 7, 96
SPREAD = 0.08  # of ViT's first weights; with the usual 0.02 the loss falls more slowly at this width
VOCABULARY, POSITIONS = 2048, 32


def fresh_vit(labels: Sequence[str], seed: int):
    """vit-mini's architecture with freshly initialised weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=4 * WIDTH,
        image_size=SIZE, patch_size=PATCH, num_channels=3, initializer_range=SPREAD,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    return ViTForImageClassification(config)


def fresh_clip(seed: int):
    """clip-mini's architecture with freshly initialised weights."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=POSITIONS, projection_dim=WIDTH,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    vision = dict(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def fresh_like(config, seed: int):
    """The architecture of a vit-mini or clip-mini config with freshly initialised weights."""
    if config.model_type == "clip":
        return fresh_clip(seed)
    return fresh_vit([config.id2label[i] for i in range(config.num_labels)], seed)


def image_processor(name: str):
    """The image processor of a backbone: PIL images of any size and mode -> (3, 28, 28) from -1 to 1."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"height": SIZE, "width": SIZE}
    shared = dict(size=size, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)
    if name == "vit-mini":
        return ViTImageProcessorPil(**shared)
    return CLIPImageProcessorPil(do_center_crop=False, crop_size=size, **shared)
