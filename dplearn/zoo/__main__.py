"""The zoo's commands: pretrain, check, list."""

from pathlib import Path

from dplearn.zoo.pretraining import pretrain

if __name__ == "__main__":
    pretrain(Path("runs/t5-mini"))
