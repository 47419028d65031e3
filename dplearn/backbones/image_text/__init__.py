"""Image-text models (CLIP, SigLIP): two towers, and a prompt in the text, in the image, in both, or in both coupled.

The text prompt stands between the start token and the end token, around the words, as CoOp (Zhou et al. 2022) places
it: its "end", "middle" and "front" are the prefix, an even surround and the postfix. The answer is read where the
model reads it: CLIP at the end token, wherever that went; SigLIP in the last row, so that its inputs keep their length
and the prompt takes the place of padding. Positions are counted anew: tokens behind the prompt move on. CLIP's text
model is causal and has absolute positions, so there the split is real.

The image prompt stands behind the patches and their position vectors, as in MaPLe (Khattak et al. 2023) and VPT, and
leaves before anything is read. There no split can matter (chapter 04), so it has none.

adapter    ImageTextBackbone: what a prompt needs to know about such a model
families   what CLIP and SigLIP do differently: reading texts, answers, losses, probabilities
captions   texts as a text tower reads them
texts      the text tower, with a prompt around the words or without
packing    texts that begin alike as one sequence, in which what they share is there once
images     the image tower, and the part of a prompt for both towers that stands in it
sides      one tower alone, for the probe
"""
