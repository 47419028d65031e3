"""Prompted image-text models: PromptedCLIP, whose texts, images or both carry a trained prompt.

model    PromptedCLIP: what users call, by composition of the rooms below with what all prompted models share
towers   both towers with one prompt: from texts and images over decisions to unit vectors and logits
losses   the loss of labels or of pairs, and over several draws
classes  the texts of the classes, and what is kept of them

How CLIP and SigLIP themselves are read is said by their adapter (:mod:`dplearn.backbones.image_text`).
"""

from dplearn.image_text.model import SHORTCUTS as SHORTCUTS
from dplearn.image_text.model import PromptedCLIP as PromptedCLIP
