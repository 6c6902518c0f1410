"""Report: one HTML page a person can read, made from the files of a run.

May import `axpo.record` only. Start reading in `page.py`; `page.html.jinja` is the page itself.
"""
