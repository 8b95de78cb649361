"""Environment variables of launchers: they must not change a run behind its config."""

import os
from collections.abc import MutableMapping

from recipe.core.errors import UsageError
from recipe.core.text import say, snippet

# accelerate's settings override those of a run: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 makes another adapter
PREFIXES = ("ACCELERATE_", "FSDP_")
SINGLE = ("LOCAL_RANK", "RANK", "WORLD_SIZE")


def clear_launcher_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the variables of accelerate and of a launcher of one process, and say which.

    Raises UsageError if a launcher started several processes: a run is one process on one GPU.
    """
    size = environment.get("WORLD_SIZE", "1")
    if size != "1":
        raise UsageError(
            f"WORLD_SIZE is {snippet(size)}, expected one process: start `python -m recipe.train` without torchrun"
        )
    removed = sorted(name for name in environment if name.startswith(PREFIXES) or name in SINGLE)
    for name in removed:
        del environment[name]
    if removed:
        say(f"ignoring {', '.join(map(snippet, removed))}: the config decides")
