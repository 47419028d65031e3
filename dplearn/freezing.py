"""A frozen backbone inside of a prompted model: what freezing changes, and how it is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from dplearn.conventions import AsBackbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Frozen(AsBackbone):
    """A module that holds a frozen ``backbone``, which no state dict of it contains."""

    # transformers.Trainer reads this: the loss is a mean over the batch, not divided by num_items_in_batch.
    accepts_loss_kwargs = False

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self._before = Flags.of(backbone)
        self.backbone: Any = backbone.requires_grad_(False)
        self._checkpointing = False
        self._prefix = ""
        self.register_state_dict_post_hook(_drop_backbone)
        self._register_load_state_dict_pre_hook(_remember_prefix, with_module=True)
        self.register_load_state_dict_post_hook(_forgive_backbone)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the backbone's activations in the backward pass instead of storing them."""
        if self._checkpointing or self._before.checkpointing:
            self.backbone.disable_input_require_grads()  # a second call would lose track of the first one's hooks
        self.backbone.gradient_checkpointing_enable(**options)
        self._checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.backbone.gradient_checkpointing_disable()
        self.backbone.disable_input_require_grads()  # transformers leaves these hooks on the embeddings
        self._checkpointing = False

    def unload(self) -> PreTrainedModel:
        """Give the backbone back as it was before it got a prompt, and end this model.

        ``requires_grad`` of every parameter and the mode of every module are what they were, and gradient checkpointing
        is off if it was turned on through this model. (Weights never change; device and dtype stay as they are now.)
        Save the prompts before: this model cannot be used afterwards.
        """
        backbone = self.backbone
        if self._checkpointing and not self._before.checkpointing:
            self.gradient_checkpointing_disable()
        self._before.restore(backbone)
        del self.backbone
        self.adapter: Any = Unloaded()
        self.backbone = self.adapter
        return backbone

    def _check_replica(self) -> None:
        """Raise RuntimeError in a copy that torch.nn.DataParallel made for one call."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "this model does not run under torch.nn.DataParallel, whose replicas are no modules of their own: "
                "start one process for each device (torchrun, accelerate launch), or show it one device "
                "(CUDA_VISIBLE_DEVICES=0)"
            )


class Flags(NamedTuple):
    """What freezing a backbone changes, by name: parameters that want gradients, modules in training mode."""

    trained: frozenset[str]
    training: frozenset[str]
    checkpointing: bool

    @classmethod
    def of(cls, backbone: nn.Module) -> Flags:
        return cls(
            frozenset(name for name, parameter in backbone.named_parameters() if parameter.requires_grad),
            frozenset(name for name, module in backbone.named_modules() if module.training),
            any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()),
        )

    def restore(self, backbone: nn.Module) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in self.trained)
        for name, module in backbone.named_modules():
            module.training = name in self.training


class Unloaded:
    """Stands where the backbone was after :meth:`Frozen.unload`; every use is an error that says so."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for these
            raise AttributeError(name)
        raise RuntimeError(
            "this model was unloaded: its backbone is free; make a new one with dplearn.prompted"
        )


def _drop_backbone(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}backbone.")]:
        del state[name]


def _remember_prefix(module: Frozen, state: dict, prefix: str, *arguments: Any) -> None:
    module._prefix = prefix


def _forgive_backbone(module: Frozen, keys: Any) -> None:
    """Weights of this module's own backbone are in no state dict (a parent may have a ``backbone`` too), and settings
    may be missing from one."""
    backbone, settings = f"{module._prefix}backbone.", f"{module._prefix}_extra_state"
    keys.missing_keys[:] = [
        name for name in keys.missing_keys if not name.startswith(backbone) and name != settings
    ]
