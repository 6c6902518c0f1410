"""Report: one HTML page that a person can read, made from the files of a run.

It owns the page, its curves and its pictures. It may import `axpo.record`, `axpo.catalog` and
`axpo.errors` only. Start reading in `page.py`: `page.html.jinja` is the page, `curves.py` says
which curves it has, and `rollout_view.py` turns recorded groups into what it shows.
"""
