"""What every prompted model has: prompts by name on one frozen backbone, each trained, saved and loaded by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dplearn import card, card_hub, checkpoint, hub, settings
from dplearn.backbones import Backbone, adapt
from dplearn.batches import batches_of, number_of_batches
from dplearn.building import as_config, check_prompt, describe, new_prompt, restore
from dplearn.caching import cache_inputs
from dplearn.choice import Chooser
from dplearn.config import PromptConfig, with_younger_options
from dplearn.controllers import InstanceController, TaskController
from dplearn.freezing import Frozen
from dplearn.kept import KeptInputs
from dplearn.offload import device_of
from dplearn.progress import told
from dplearn.prompt import DynamicPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NamedPrompts(Frozen):
    """A frozen backbone with prompts: the one in use is the module ``prompt``, others wait.

    Prompts at rest are no submodules, so nothing trains or saves them; they move with the model (``to``, ``double``).
    How a batch passes the backbone with its prompt is said by the class for a kind of model, which also has a
    ``summarize``: what instance-level decisions look at.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        prompt: DynamicPrompt,
        prompt_config: PromptConfig,
        adapter: Backbone | None = None,
    ):
        adapter = adapt(backbone) if adapter is None else adapter
        check_prompt(adapter, prompt, prompt_config)
        super().__init__(backbone)
        self.adapter = adapter
        self.prompt = prompt.to(device_of(self.backbone))
        self.prompt_config = prompt_config
        # Those at rest with their config. The one in use is ``prompt``, and None stands here.
        self._prompts: dict[str, tuple[DynamicPrompt, PromptConfig] | None] = {"default": None}
        self.train(backbone.training)

    def train(self, mode: bool = True) -> NamedPrompts:
        """Training mode of the prompt; the backbone follows only if ``prompt_config.backbone_dropout``."""
        super().train(mode)
        self.backbone.train(mode and self.prompt_config.backbone_dropout)
        return self

    # --- several prompts on one backbone ---

    @property
    def prompts(self) -> tuple[str, ...]:
        """Names of the prompts that there are. A new model has one, "default"."""
        return tuple(self._prompts)

    @property
    def active_prompt(self) -> str:
        """Name of the prompt in use, which is the module ``prompt``."""
        return next(name for name, at_rest in self._prompts.items() if at_rest is None)

    def add_prompt(
        self,
        name: str,
        config: PromptConfig | None = None,
        vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add a prompt under a new name; ``config``, ``vectors`` and ``generator`` as in :func:`dplearn.prompted`.

        The prompt in use stays in use: call :meth:`use_prompt` to change to the new one.

        Raises
        ------
        ValueError : the name is taken or empty; the prompt does not fit the backbone.
        TypeError : ``config`` is no PromptConfig.
        """
        self._check_new(name)
        config = as_config(config)
        self._add(name, new_prompt(self.adapter, config, vectors, generator), config)

    def load_prompt(self, name: str, folder: str | os.PathLike, **where: Any) -> None:
        """Add a prompt that :meth:`save_pretrained` wrote to ``folder``, under a new name, without using it yet.

        ``folder`` may be a repository of a model hub, and ``where`` is ``revision``, ``token``, ``cache_dir`` or
        ``local_files_only``, as in :func:`dplearn.from_pretrained`.

        Raises what :func:`dplearn.from_pretrained` raises, and ValueError where the name is taken or empty.
        """
        self._check_new(name)
        saved = checkpoint.read(hub.located(folder, **where))
        config = PromptConfig.from_saved(saved.options)
        self._add(name, restore(folder, saved, config, self.adapter), config)

    def use_prompt(self, name: str) -> None:
        """Put another prompt to use: it answers, is trained and saved from here on. Nothing is loaded or copied.

        Make the optimizer afterwards: one that was made before holds the other prompt's parameters.

        Raises
        ------
        ValueError : there is no prompt of that name.
        """
        self._check_known(name)
        active = self.active_prompt
        if name != active:
            self._prompts[active] = (self.prompt, self.prompt_config)
            at_rest, self._prompts[name] = self._prompts[name], None
            self.prompt, self.prompt_config = cast(tuple[DynamicPrompt, PromptConfig], at_rest)
            self.train(self.training)

    def remove_prompt(self, name: str) -> None:
        """Forget a prompt that is not in use.

        Raises
        ------
        ValueError : there is no prompt of that name, or it is the one in use.
        """
        self._check_known(name)
        if name == self.active_prompt:
            raise ValueError(
                f"name={name!r} is in use, expected one that is not: call use_prompt with another first"
            )
        del self._prompts[name]

    def _add(self, name: str, prompt: DynamicPrompt, config: PromptConfig) -> None:
        check_prompt(self.adapter, prompt, config)
        self._prompts[name] = (prompt.to(device_of(self.backbone)), config)

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r} is not valid, expected a string that is not empty")
        if name in self._prompts:
            raise ValueError(f"name={name!r} is taken, expected a name other than {list(self._prompts)}")

    def _check_known(self, name: str) -> None:
        if name not in self._prompts:
            raise ValueError(f"name={name!r} is unknown, expected one of {list(self._prompts)}")

    def _apply(self, fn: Callable, recurse: bool = True) -> NamedPrompts:
        for at_rest in self._prompts.values():
            if at_rest is not None:
                at_rest[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # --- several tasks on one prompt ---

    def add_task(self, name: str) -> None:
        """Add a task: fresh logits in every task-level decision. Nothing else changes, so other tasks answer as before.

        A model made without ``tasks`` has one that is called "default". Parameters with new rows are new objects: make
        the optimizer afterwards.
        """
        tasks = (*(self.prompt_config.tasks or ("default",)), name)
        config = replace(self.prompt_config, tasks=tasks)  # checks the name
        for module in self.prompt.modules():
            if isinstance(module, TaskController):
                module.add_task()
        self.prompt_config = config

    def task_numbers(
        self, task_ids: Tensor | Sequence[int | str] | None, batch: int | None = None
    ) -> Tensor | None:
        """Task numbers (B,) from numbers or names, such as a column of a data set holds; None stays None.

        Collators make tensors of columns, and names are none: give them their numbers before the Trainer sees them,
        ``data.map(lambda rows: {"task_ids": model.task_numbers(rows["task_ids"])}, batched=True)``.

        batch : how many there must be.

        Raises
        ------
        ValueError : unknown names or numbers, or not one for each instance.
        """
        names = self.prompt_config.tasks or ("default",)
        if task_ids is None:
            return None
        if isinstance(task_ids, str):
            raise ValueError(
                f"task_ids={task_ids!r} is one name, expected one for each instance of the batch"
            )
        if not isinstance(task_ids, Tensor):
            unknown = [task for task in task_ids if isinstance(task, str) and task not in names]
            if unknown:
                raise ValueError(f"task_ids holds {unknown[0]!r}, expected some of {list(names)}")
            numbers = [names.index(task) if isinstance(task, str) else task for task in task_ids]
            task_ids = torch.tensor(numbers, device=self.prompt.vectors.device)
        count = task_ids.shape[0] if batch is None and task_ids.ndim else batch
        if task_ids.shape != (count,) or task_ids.is_floating_point():
            what = f"shape {tuple(task_ids.shape)} and dtype {task_ids.dtype}"
            raise ValueError(f"task_ids has {what}, expected integers ({count},)")
        if task_ids.device.type == "cpu" and not torch.compiler.is_compiling() and task_ids.numel():
            if not 0 <= int(task_ids.min()) <= int(task_ids.max()) < len(names):
                raise ValueError(
                    f"task_ids holds {task_ids.min()}..{task_ids.max()}, expected 0..{len(names) - 1}: {list(names)}"
                )
        return task_ids.long()

    # --- before the training ---

    @torch.no_grad()
    def fit_summaries(
        self,
        data: Iterable[dict] | Sequence[dict],
        collate: Callable[[list[dict]], dict] | None = None,
        batch_size: int = 64,
    ) -> None:
        """Compute what summaries are standardized by from all training inputs, before the training.

        Without it, the statistics start with the first batch and grow. What was there before is forgotten; what is seen
        in training is still added. Does nothing where no decision looks at the input, or none is standardized.

        Parameters
        ----------
        data : the training examples, or batches as a DataLoader gives them. (In several processes: each its share.)
        collate : examples become a batch by it (:func:`dplearn.batches.batches_of`).
        batch_size : examples in each batch.
        """
        controllers = [
            m for m in self.prompt.modules() if isinstance(m, InstanceController) and m.standardizer
        ]
        for controller in controllers:
            controller.forget()
        batches = batches_of(data, collate, batch_size, self.device) if controllers else iter(())
        for batch in told(batches, "summaries", number_of_batches(data, batch_size)):
            summary = self.summarize(**self.accepted(batch))
            for controller in controllers:
                controller.observe(summary)

    @torch.no_grad()
    def cache_inputs(
        self,
        data: Iterable[dict] | Sequence[dict],
        collate: Callable[[list[dict]], dict] | None = None,
        batch_size: int = 16,
        dtype: torch.dtype | None = None,
        folder: str | os.PathLike | None = None,
        verbose: bool = True,
    ) -> KeptInputs:
        """Compute once what no prompt can change of inputs: the keys and values of texts that a prompt stands behind
        (decoder-only models), the states of images in front of the first layer that has one (``from_layer`` above 1).

        A row of a causal model does not see what follows it. So with a postfix the rows of the input are the frozen
        model's own, in each step of training and for each prompt. From here on, a step on these inputs runs the
        prompt's rows and what follows them alone. Its output has the columns from the last token of the input on, as
        with transformers' ``logits_to_keep``; loss, gradients and answers are those of the full pass, up to rounding.
        Other inputs take the full pass, and so do calls that want a cache, hidden states or attentions, or that are
        neither training nor have labels nor ``use_cache=False``; and all once the backbone's weights have changed.
        ``model.shortcuts = ()`` turns it off.

        Of an image, the layers in front of ``from_layer`` are spared; nothing else differs from the full pass.

        Parameters
        ----------
        data : the examples, a batch, or batches as a DataLoader gives them, with ``context_length`` or ``keep_last`` as
            in training.
        collate : examples become a batch by it (:func:`dplearn.batches.batches_of`).
        batch_size : examples in each batch.
        dtype : in which keys and values are kept; None: the backbone's own. A shorter one saves memory and is no longer
            exact.
        folder : keep them there, as safetensors; what is there already is not computed again. None: in memory.
        verbose : say how much it is before it starts.

        Returns
        -------
        What is kept; a further call with the same ``dtype`` and ``folder`` adds to it. As a context it is kept for a
        while: inside of ``with model.cache_inputs(batch, verbose=False):`` several prompts in turn answer to one batch
        whose inputs ran once.

        Raises
        ------
        ValueError : a backbone, or a prompt, of which nothing can be kept; the message says why.
        """
        return cache_inputs(self, data, collate, batch_size, dtype, folder, verbose)

    # --- what is trained, told and saved ---

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Exactly the parameters that are trained, by name: the prompt's own, with its head where that is trained."""
        return {f"prompt.{name}": parameter for name, parameter in self.prompt.named_parameters()}

    def set_temperature(self, temperature: float) -> None:
        """Set the Gumbel-Softmax temperature of every decision."""
        for module in self.prompt.modules():
            if isinstance(module, Chooser):
                module.set_temperature(temperature)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and of how many.

        Vectors that a fixed ``size`` leaves out are not counted as trained; their number follows where there are any.
        So does that of the backbone's own parameters that are trained beside the prompt (adapters of PEFT).
        """
        counted = card.count(self.prompt, self.backbone)
        text = f"trainable params: {counted.trained:,} || all params: {counted.total:,}"
        text += f" || trainable%: {100 * counted.trained / counted.total:.4f}"
        text += f" || head: trained, {counted.head:,}" if "head" in self.prompt.attached else ""
        text += f" || not in use: {counted.unused:,}" if counted.unused else ""
        beside = sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)
        print(text + (f" || backbone: trained, {beside:,}" if beside else ""))

    def summary(self) -> card.Summary:
        """A text of a few lines: the backbone, each decision with its level and parameters, and what is trained.

        Parameters that cannot change any output (vectors that a fixed ``size`` leaves out) are not counted as trained.
        The last line is the size of the checkpoint that :meth:`save_pretrained` writes.
        """
        size = sum(len(data) for data in checkpoint.files(*self._checkpoint(self.active_prompt)).values())
        counted = card.count(self.prompt, self.backbone)
        described = describe(self.adapter, self.prompt_config, self.prompt)
        others = [name for name in self.prompts if name != self.active_prompt]
        return card.summarize(
            self.prompt, self.prompt_config, counted, described, self.active_prompt, others, size
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        name: str | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        metadata: dict | None = None,
        **others: Any,
    ) -> None:
        """Write the prompt (safetensors), its configuration (JSON) and a card (README.md) to ``folder``.

        The backbone is not written. A stop at any moment leaves the old or the new checkpoint, never half of one
        (:func:`dplearn.checkpoint.save`).

        Parameters
        ----------
        folder : made where missing. A README.md in it that dplearn did not write stays as it is.
        name : which prompt; None is the one in use.
        is_main_process : False writes nothing, as transformers' models do in all processes but one.
        state_dict : this model's state as an accelerator gathers it from several processes, instead of its own.
        metadata : what the card says to a model hub: licence, language, data sets, metrics, results, ...
            (:func:`dplearn.card_hub.front_matter`).
        others : what else ``save_pretrained`` of transformers takes (``safe_serialization``, ``max_shard_size``,
            ...); a prompt has one small file in one format, so they change nothing.

        Raises
        ------
        ValueError : there is no prompt of that name; an entry of ``metadata`` is unknown or of another kind.
        """
        name = self.active_prompt if name is None else name
        tensors, options, backbone, text = self._checkpoint(name, metadata)
        if state_dict is not None:
            given = {key.removeprefix("prompt."): value for key, value in state_dict.items()}
            tensors = {key: given[key] for key in tensors if key in given}
        if is_main_process:
            checkpoint.save(folder, tensors, options, backbone, text)

    def push_to_hub(
        self,
        repo_id: str,
        name: str | None = None,
        *,
        metadata: dict | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Send the prompt to a model hub: the files of :meth:`save_pretrained`, in one commit.

        :func:`dplearn.from_pretrained` loads it from there by name. The backbone is not sent.

        Parameters
        ----------
        repo_id : "owner/name"; the repository is made where it is missing. A README.md in it that dplearn did not
            write stays as it is.
        name : which prompt; None is the one in use.
        metadata : as in :meth:`save_pretrained`.
        private : whether a new repository is; None: as the owner's account says.
        token : what may write there; None: the one of ``hf auth login`` or ``HF_TOKEN``.
        revision : a branch, made where it is missing; None: the main one.
        commit_message : None: "A prompt", and the version of dplearn.
        create_pr : ask for the change instead of making it.

        Returns
        -------
        The address of the commit, or of the request.

        Raises
        ------
        ValueError : ``repo_id`` is no name of a repository; there is no prompt of that name; numbers that are not
            finite; an entry of ``metadata`` is unknown or of another kind.
        PermissionError : there is no token, or it may not write there.
        """
        hub.check_name(repo_id)
        given = self._checkpoint(self.active_prompt if name is None else name, metadata, repo_id)
        checkpoint.check_finite(repo_id, given[0], "cannot be sent to")
        return hub.upload(
            repo_id,
            checkpoint.files(*given),
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    def get_extra_state(self) -> Tensor:
        """The settings of the prompt in use, as bytes: what a program that saves a state dict alone would lose."""
        described = describe(self.adapter, self.prompt_config, self.prompt)
        return settings.to_tensor(self.prompt_config.to_dict(), described, self.prompt.state_dict())

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the settings of a state with those of the prompt in use.

        Raises
        ------
        ValueError : an option differs that says what the tensors mean.
        """
        recorded = settings.from_tensor("the state dict", state).options
        settings.check_options(with_younger_options(recorded), self.prompt_config.to_dict())

    def _checkpoint(
        self, name: str, metadata: dict | None = None, source: str = card_hub.FOLDER
    ) -> tuple[dict[str, Tensor], dict, dict, str]:
        """What :func:`dplearn.checkpoint.save` writes: tensors, options, the backbone's description, the card."""
        self._check_known(name)
        prompt, config = self._prompts[name] or (self.prompt, self.prompt_config)
        backbone = describe(self.adapter, config, prompt)
        counted = card.count(prompt, self.backbone)
        text = card.write_card(config, counted, backbone, metadata, source)
        return prompt.state_dict(), config.to_dict(), backbone, text
