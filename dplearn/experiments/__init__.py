"""The studies of the book: tune one method on one task, compare methods over seeds, keep records with provenance.

A study is a file (`study`); its runs (`jobs`, `execution`) are done by workers (`runner`, `workers`), lie in one file
each (`store`), and become tables, figures and verdicts (`tables`, `figures`, `verdicts`). `python -m
dplearn.experiments list` shows the studies; `records` reads what was published of them.
"""
