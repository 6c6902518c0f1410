"""Report: HTML pages that a person can read, made from the files of a run or of evaluations.

It owns these pages, their curves and their pictures. It may import `axpo.record`, `axpo.catalog`,
`axpo.evaluation`, `axpo.errors` and `axpo.texts`. Start reading in `page.py`: `page.html.jinja` is
the page of a run, `curves.py` says which curves it has, and `rollout_view.py` turns recorded groups
into what it shows. `evaluation.py` and `comparison.py` make the pages of evaluations.
"""
