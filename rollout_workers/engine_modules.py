"""Import what an engine's process needs; the fork server imports this module.

Nothing here may start a thread or touch a device: forks would not have it.
"""

import setproctitle

from axpo.quick_imports import quick_imports

# What `ps` shows. A fork can only be renamed if this was done before it has an environment of its
# own.
setproctitle.setproctitle("axpo-fork-server")

with quick_imports():
    import vllm.v1.engine.core
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import vllm.v1.worker.cpu_worker  # noqa: F401
