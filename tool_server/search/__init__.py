"""Search as a tool: one form of results over two back ends, and search of captioned images.

This folder owns the kinds of tools `search` and `image_search`, the embedded local index and the
client of Tavily. It may import the modules of `tool_server` beside it that say what a tool is
(`tool.py`, `arguments.py`, `images.py`).

Start reading at `tools.py` (the tools), then `results.py` (what the policy writes and reads). The
local index is `corpus.py` (what is indexed), `build.py` and `index.py`. Tavily is `tavily.py` and
`cache.py`.
"""
