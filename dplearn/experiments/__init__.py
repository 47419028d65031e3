"""The studies of the book: tune one method on one task, compare methods over seeds, keep records with provenance.

`python -m dplearn.experiments --help` lists the studies; `records` reads what they recorded.
"""
