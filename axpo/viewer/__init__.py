"""Viewer: pages over run directories, served on this machine while the runs train.

It owns `axpo view`: the pages, the process that keeps the catalogs up to date, and what keeps
strangers out. Nothing is written into a run. It may import `axpo.report`, `axpo.catalog`,
`axpo.record` and the small modules beside it (`axpo.errors`, `axpo.texts`, `axpo.plain_files`).
Start reading in `serve.py`; `app.py` lists the pages, `guard.py` says who may ask, and `templates/`
has what a page looks like.
"""
