"""dplearn: dynamic prompt tuning for frozen foundation models.

A frozen model is steered by a few trained prompt vectors; where they stand around the input is fixed, learned for the
task, or decided for each input. Reading order of the package: insertion, sampling, estimators, choice, controllers,
position, length, vector, prompt, config, backbones, model, image_text, training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dplearn.choice import schedule
from dplearn.config import PromptConfig
from dplearn.insertion import insert, insert_weighted
from dplearn.interop import export_peft, import_npy, import_peft
from dplearn.loading import from_pretrained, prompted
from dplearn.model import PromptedModel
from dplearn.prompt import DynamicPrompt
from dplearn.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers; at run time these come at first use
    from dplearn import tasks, theory, zoo
    from dplearn.image_text import PromptedCLIP
    from dplearn.linear_probe import LinearProbe
    from dplearn.reporting import decision_report
    from dplearn.training import Annealing, LabelWordLoss, parameter_groups

__all__ = [
    "Annealing",
    "DynamicPrompt",
    "LabelWordLoss",
    "LinearProbe",
    "PromptConfig",
    "PromptedCLIP",
    "PromptedModel",
    "decision_report",
    "export_peft",
    "from_pretrained",
    "import_npy",
    "import_peft",
    "insert",
    "insert_weighted",
    "parameter_groups",
    "prompted",
    "schedule",
    "tasks",
    "theory",
    "zoo",
]

# Loaded at first use: transformers' trainer doubles the time that `import dplearn` takes.
_LATER = {
    "Annealing": "training",
    "LabelWordLoss": "training",
    "LinearProbe": "linear_probe",
    "PromptedCLIP": "image_text",
    "decision_report": "reporting",
    "parameter_groups": "training",
    "tasks": None,
    "theory": None,
    "zoo": None,
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'dplearn' has no attribute {name!r}")
    module = import_module(f"dplearn.{_LATER[name] or name}")
    return module if _LATER[name] is None else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
