"""The folder of a pretraining run: documents, checkpoint, log; and the export to Hugging Face files."""

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from ..files import replacing, write

# glibc gives large buffers back after every operation by default; keeping them saves a third of the time.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def write_documents(folder):
    """The entries of the pretraining libraries as folder/documents.json, once per run folder."""
    from ..tasks.documentation import PRETRAINING_LIBRARIES, extract

    if not (folder / "documents.json").exists():
        entries = [entry for library in PRETRAINING_LIBRARIES for entry in extract(library)]
        write(folder / "documents.json", json.dumps(entries).encode())


def save_checkpoint(folder, model, optimizer, **progress):
    """Writes the state of model and optimizer, and how far the run is (``step`` and more), in one step."""
    state = progress | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(folder / "checkpoint.pt") as file:
        torch.save(state, file)


def load_checkpoint(folder, model, optimizer) -> dict:
    """How far a run is, as it was saved ({} at the start); the state of model and optimizer is put in place."""
    if not (folder / "checkpoint.pt").exists():
        return {}
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    return state


def append_log(folder, record: dict) -> None:
    """Appends one line to the log and prints it."""
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
    tqdm.write(json.dumps(record))


def losses_of(folder):
    """The log of a run: one record for each report."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def write_export(folder, target, model, processor):
    """The files of an export (float16): the weights of the run folder's checkpoint in ``model``, which is of their
    kind, the tokenizer or processor, losses and hashes; returns ``target``."""
    folder, target = Path(folder), Path(target)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    target.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(target)
    processor.save_pretrained(target)
    write(target / "losses.json", (json.dumps(losses_of(folder), indent=0) + "\n").encode())
    write_hashes(target)
    return target


def write_hashes(target):
    """Records the SHA-256 of the files that `dplearn.zoo.load` reads."""
    files = sorted(path for path in target.iterdir() if path.suffix in (".json", ".safetensors"))
    kept = [path for path in files if path.name not in ("sha256.json", "gates.json")]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    write(target / "sha256.json", (json.dumps(hashes, indent=2) + "\n").encode())
