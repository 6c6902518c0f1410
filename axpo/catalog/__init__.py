"""Catalog: find groups in a run of thousands without reading the run again.

It owns an SQLite file a run, in the user's cache folder: a row for each kept group, the texts for
full-text search, and what went wrong. It is made of the run's files, follows them as they grow, and
can be deleted at any time. Nothing is written into the run.

It may import `axpo.record`, `axpo.errors` and `axpo.texts`. Start reading in `schema.py`; `fill.py`
follows the files of a run, `wanted.py` is the language of the filters, and `search.py` answers.
"""
