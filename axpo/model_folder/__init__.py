"""Say what is wrong with a model folder, before anything starts.

Every command that uses a model calls `check_models`. What it finds is one line that names the
folder, the file, the value and what was expected. No weight is read: of the safetensors only the
headers are.

May import `axpo.config`, `axpo.memory`, `rollout_workers` and `tool_server`. Start reading in
`check.py`. `files.py` looks at what the folder holds, `weights.py` at the headers of its weights,
`prompt.py` at what a prompt takes of the context.
"""

from axpo.model_folder.check import ModelReport, check_models

__all__ = ["ModelReport", "check_models"]
