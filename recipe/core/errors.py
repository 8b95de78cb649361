"""What can go wrong, and the exit code it ends with. One sentence each: found, expected, what to do."""


class RecipeError(Exception):
    """The work failed: a bad file, a full disk, a loss that is not finite."""

    exit_code = 1


class UsageError(RecipeError):
    """The command or the config cannot be right: an unknown key, a missing flag, a value of the wrong type."""

    exit_code = 2


class UnfitError(RecipeError):
    """The environment cannot do it: another Python, a GPU with too little memory, a library without sm_60 code."""

    exit_code = 3
