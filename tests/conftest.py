"""What all tests share: no network, fixed seeds, no compiled code of other tests, and property tests that do not depend
on the machine's speed."""

import logging
import os
import sys

import hypothesis
import pytest
import skips
import sweep
import tiers
from chromium import browser  # noqa: F401  a fixture is found where it is imported

# Set before transformers or datasets are imported: a test that asks a hub for anything fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if "MUTANT_UNDER_TEST" in os.environ:
    # mutmut forks a process for each mutant. A lock that all of them share would stay locked once one ends inside it.
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0

# The same examples on every machine, and no limit on one example's time: cores may be shared.
hypothesis.settings.register_profile("dplearn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dplearn")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    tiers.mark(config, items)


def pytest_terminal_summary(terminalreporter):
    sweep.summary(terminalreporter)
    skips.summary(terminalreporter)


@pytest.hookimpl(tryfirst=True)  # before the summary is printed and the status returned
def pytest_sessionfinish(session):
    skips.check(session)


@pytest.fixture(autouse=True)
def seeds():
    """Start every test from the same random state, so that its result does not depend on the order of tests."""
    import random

    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what earlier tests compiled: torch allows few versions of one function, and all models share some."""
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()


@pytest.fixture
def said():
    """What transformers logs from warnings up; a message that it gives once in a process comes again."""
    from transformers.utils import logging as theirs

    messages, handler, logger = [], logging.Handler(logging.WARNING), logging.getLogger("transformers")
    handler.emit = lambda record: messages.append(record.getMessage())
    theirs.warning_once.cache_clear()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
