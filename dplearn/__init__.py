"""dplearn: dynamic prompt tuning for frozen foundation models.

A frozen model is steered by a few trained prompt vectors; where they stand around the input is fixed, learned for the
task, or decided for each input. Reading order of the package: insertion, choice, controllers, position, prompt, config,
backbones, model, training.
"""

from dplearn import tasks
from dplearn.choice import schedule
from dplearn.config import PromptConfig
from dplearn.insertion import insert, insert_weighted
from dplearn.model import PromptedModel, from_pretrained, prompted
from dplearn.prompt import DynamicPrompt
from dplearn.training import Annealing, LabelWordLoss, parameter_groups

__version__ = "0.1.0"

__all__ = [
    "Annealing",
    "DynamicPrompt",
    "LabelWordLoss",
    "PromptConfig",
    "PromptedModel",
    "from_pretrained",
    "insert",
    "insert_weighted",
    "parameter_groups",
    "prompted",
    "schedule",
    "tasks",
]
