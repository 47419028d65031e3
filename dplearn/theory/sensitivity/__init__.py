"""How much a real model's answer changes when the split of a prompt moves, and through which mechanism.

Attention without position information does not see the order of its rows. So a split acts only through what a model
adds to that: position vectors, a bias of relative distances, rotary angles, the causal mask, and the choice of the row
that is read. :func:`~dplearn.theory.sensitivity.probe.position_sensitivity` moves a prompt through all splits of a
frozen model, measures the change, and measures it again with each of these switched off. No training is needed, so ask
it before a position is learned.

probe       the measurement
report      its numbers, as a table and in words
towers      a model as the probe runs it, through the adapter of its kind
absorption  what absolute positions leave to learn
"""

from dplearn.backbones.mechanisms import ABSOLUTE, RELATIVE, ROTARY
from dplearn.theory.sensitivity.absorption import absorb
from dplearn.theory.sensitivity.probe import change_between, position_sensitivity
from dplearn.theory.sensitivity.report import CAUSAL, READOUT, Change, Sensitivity
from dplearn.theory.sensitivity.towers import States, Tower, readouts, tower

__all__ = [
    "ABSOLUTE",
    "CAUSAL",
    "READOUT",
    "RELATIVE",
    "ROTARY",
    "Change",
    "Sensitivity",
    "States",
    "Tower",
    "absorb",
    "change_between",
    "position_sensitivity",
    "readouts",
    "tower",
]
