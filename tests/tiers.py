"""Which tests plain ``pytest`` leaves out: those of this table get the marker ``thorough``, which `make test` runs too.

Three tiers: no marker (``pytest``, three minutes in one process), ``thorough`` (`make test`, `.ci/run`), and
``slow`` (`make sweep`), which a test declares itself. One table instead of markers in sixty files: what is left out can
be read in one place, examples in docstrings are in it too, and an entry that matches nothing is an error.
"""

import pytest

# Beginnings of test ids, each as long as it has to be.
THOROUGH = (
    # Processes of their own, started, stopped and killed.
    "tests/test_distributed.py",
    "tests/test_files.py::test_any_interleaving",
    "tests/test_packaged.py::test_of_two_processes",
    "tests/test_checkpoint.py::test_a_killed_writer",
    "tests/test_trust.py::test_a_row_of_figures_with_processes_or_threads",
    "tests/experiments",
    # Trainers, a second each; test_training.py stays.
    "tests/test_trainer",
    # A browser; a look at every import; scripts and tables as a whole; memory over many batches.
    "tests/interactive/test_interactive.py",
    "tests/theory/test_theory_explorer.py",
    "tests/book/test_pdf.py::test_a_browser_prints_the_pages",
    "tests/book/test_project.py::test_import_is_light",
    "tests/book/test_project.py::test_import_leaves",
    "tests/book/test_benchmarks.py::test_the_script_for_a_gpu",
    "tests/book/test_figures.py",
    "tests/book/test_pages.py::test_a_fork_changes_one_line",
    "tests/test_tiers.py::test_every_skip_gives_a_reason",
    "tests/test_trust.py::test_a_row_of_figures_tries_and_finds_nothing_wrong[memory]",
    "tests/test_trust.py::test_one_tensor_that_grows",
    "tests/test_trust.py::test_tensors_that_stay",
    # Runs of studies and of the Trainer that are stopped and gone on with.
    "tests/tasks/test_joined.py::test_a_run_decides_per_task",
    "tests/test_head.py::test_the_trainer",
    "tests/test_training.py::test_checkpoints_hold",
    "tests/test_training.py::test_accumulated_gradients",
    "tests/test_training.py::test_trainer_learns",
    "tests/test_training.py::test_the_best_checkpoint",
    "tests/test_linear_probe.py::test_the_trainer",
    "tests/backbones/test_fronts.py::test_the_trainer",
    "tests/test_length.py::test_the_trainer_accumulates",
    "tests/backbones/test_clip_training.py::test_the_trainer",
    "tests/backbones/test_clip_training.py::test_a_resumed_run",
    # Estimators trained until they differ.
    "tests/theory/test_theory_gradients.py::test_only_the_papers_estimator_does_not_learn",
    # What torch compiles, seconds each.
    "tests/test_model.py::test_one_graph",
    "tests/test_model.py::test_a_new_temperature",
    "tests/test_named_prompts.py::test_a_compiled_model",
    "tests/test_prompt.py::test_one_graph",
    "tests/test_insertion.py::test_vmap_compiles",
    "tests/test_insertion.py::test_compiles",
    "tests/test_training.py::test_the_loss_compiles",
    "tests/test_head.py::test_the_model_compiles",
    "tests/backbones/test_backbones.py::test_insertion_is_one_graph",
    "tests/backbones/test_backbones.py::test_the_whole_model_is_one_graph",
    "tests/backbones/test_clip_training.py::test_one_compiled_graph",
    "tests/backbones/test_vit.py::test_coded_prompts_compile",
    "tests/backbones/test_vit.py::test_one_compiled_graph",
    # Models that ship, loaded and asked; their data and records.
    "tests/zoo",
    # The built book in a browser, every example of the pages, tables of all models.
    "tests/book/test_documentation.py",
    "tests/book/test_examples.py",
    "tests/book/test_site.py",
    # Examples of what is trained or drawn.
    "dplearn/experiments",
    "dplearn/tasks",
    "dplearn/theory",
    "dplearn/zoo",
)
COLLECTED = pytest.StashKey[dict]()


def tier(item):
    """The marker of a collected test, or None where plain ``pytest`` runs it."""
    return next((name for name in ("slow", "thorough") if item.get_closest_marker(name)), None)


def mark(config, items):
    """Mark the tests of the table, and remember what was collected before any choice: test id -> tier."""
    for item in items:
        if item.nodeid.startswith(THOROUGH):
            item.add_marker("thorough")
    config.stash[COLLECTED] = {item.nodeid: tier(item) for item in items}
