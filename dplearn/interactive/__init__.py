"""Figures of the book that a reader can move: offline, by keyboard and by finger, with words for all others.

page     what they share: frame, look, controls, the table, what is left without scripts and on paper
picture  pictures that are drawn for every state in Python and shown by one script
noise    chapter 05: temperature and noise of Gumbel-Softmax
heads    chapter 03: where the attention heads of t5-mini look, at every split
places   chapter 07: what a controller decides for a sentence, while it is trained
sources  chapters 09 and 12: decisions of a trained model for an input, and those of another in their place

The figure of chapter 04 has the same frame and stands with its theory, in :mod:`dplearn.theory.explorer`.
"""
