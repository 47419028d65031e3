"""Write the small intersphinx inventories in book/inventories.

Sphinx checks every reference (-n). With the inventories of other projects stored here, the check needs no
network, and a reader who is on line still follows the links. Each entry is one name that a signature or a page
uses. Run after adding one:  python book/_tools/make_inventory.py
"""

import zlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "inventories"

# project -> [(name, role in the Python domain, address below the project's documentation)]
PROJECTS = {
    "python": [
        *(
            (f"collections.abc.{name}", "class", "library/collections.abc.html#collections.abc.$")
            for name in (
                "Callable",
                "Collection",
                "Hashable",
                "Iterable",
                "Iterator",
                "Mapping",
                "MutableMapping",
                "Sequence",
            )
        ),
        ("Ellipsis", "data", "library/constants.html#Ellipsis"),
        ("inspect.Signature", "class", "library/inspect.html#inspect.Signature"),
        ("os.PathLike", "class", "library/os.html#os.PathLike"),
        ("pathlib.Path", "class", "library/pathlib.html#pathlib.Path"),
        ("pathlib._local.Path", "class", "library/pathlib.html#pathlib.Path"),
        ("random.Random", "class", "library/random.html#random.Random"),
        ("types.ModuleType", "class", "library/types.html#types.ModuleType"),
        ("typing.NamedTuple", "class", "library/typing.html#typing.NamedTuple"),
        ("typing.Any", "class", "library/typing.html#typing.Any"),
        ("typing.Any", "data", "library/typing.html#typing.Any"),
        ("typing.ClassVar", "data", "library/typing.html#typing.ClassVar"),
        ("typing.Literal", "data", "library/typing.html#typing.Literal"),
        ("typing.NoReturn", "data", "library/typing.html#typing.NoReturn"),
        ("typing.TypeGuard", "data", "library/typing.html#typing.TypeGuard"),
        ("typing.TypeVar", "class", "library/typing.html#typing.TypeVar"),
        ("typing.Optional", "data", "library/typing.html#typing.Optional"),
        ("typing.Union", "data", "library/typing.html#typing.Union"),
    ],
    "torch": [
        ("torch.Tensor", "class", "tensors.html#torch.Tensor"),
        ("torch._tensor.Tensor", "class", "tensors.html#torch.Tensor"),
        ("torch.LongTensor", "class", "tensors.html#torch.Tensor"),
        ("torch.FloatTensor", "class", "tensors.html#torch.Tensor"),
        ("torch.BoolTensor", "class", "tensors.html#torch.Tensor"),
        ("torch.dtype", "class", "tensor_attributes.html#torch.dtype"),
        ("torch.device", "class", "tensor_attributes.html#torch.device"),
        ("torch.Generator", "class", "generated/torch.Generator.html#torch.Generator"),
        ("torch._C.Generator", "class", "generated/torch.Generator.html#torch.Generator"),
        ("torch.nn.Module", "class", "generated/torch.nn.Module.html#torch.nn.Module"),
        ("torch.nn.modules.module.Module", "class", "generated/torch.nn.Module.html#torch.nn.Module"),
        (
            "torch.nn.Parameter",
            "class",
            "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
        ),
        (
            "torch.nn.parameter.Parameter",
            "class",
            "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
        ),
        ("torch.nn.Embedding", "class", "generated/torch.nn.Embedding.html#torch.nn.Embedding"),
        (
            "torch.nn.modules.sparse.Embedding",
            "class",
            "generated/torch.nn.Embedding.html#torch.nn.Embedding",
        ),
        (
            "torch.nn.functional.gumbel_softmax",
            "function",
            "generated/torch.nn.functional.gumbel_softmax.html#torch.nn.functional.gumbel_softmax",
        ),
    ],
    "transformers": [
        ("transformers.Trainer", "class", "main_classes/trainer#transformers.Trainer"),
        ("transformers.TrainerCallback", "class", "main_classes/callback#transformers.TrainerCallback"),
        (
            "transformers.trainer_callback.TrainerCallback",
            "class",
            "main_classes/callback#transformers.TrainerCallback",
        ),
        ("transformers.PreTrainedModel", "class", "main_classes/model#transformers.PreTrainedModel"),
        (
            "transformers.modeling_utils.PreTrainedModel",
            "class",
            "main_classes/model#transformers.PreTrainedModel",
        ),
    ],
}


def inventory(project, entries):
    """The bytes of an objects.inv file, version 2: four header lines, then one compressed line per entry."""
    header = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    header += "# The remainder of this file is compressed using zlib.\n"
    lines = []
    for name, role, address in entries:
        address = address.replace("$", name.rsplit(".", 1)[-1])
        lines.append(f"{name} py:{role} 1 {address} -\n")
    return header.encode() + zlib.compress("".join(lines).encode(), 9)


def main():
    """Write one file per project."""
    FOLDER.mkdir(exist_ok=True)
    for project, entries in PROJECTS.items():
        path = FOLDER / f"{project}.inv"
        path.write_bytes(inventory(project, entries))
        print(f"{path.name}: {len(entries)} names")


if __name__ == "__main__":
    main()
