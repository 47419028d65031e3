"""Checkpoints for tests that change them: edits of the settings, with the seal renewed, so that what is behind it shows."""

import json

from dplearn import settings


def edit(folder, change, sealed=True):
    """Apply ``change`` to the JSON document of a checkpoint; ``sealed``: as somebody who means it would."""
    path = folder / "prompt_config.json"
    document = json.loads(path.read_text())
    change(document)
    if sealed and "seal" in document:
        document["seal"]["sha256"] = settings.digest(document, document["seal"]["options"])
    path.write_text(json.dumps(document))


def name_backbone(folder, name):
    """Record a name for the backbone: that of a folder, as versions before the seal did."""
    edit(folder, lambda document: document["backbone"].update(name_or_path=str(name)))
