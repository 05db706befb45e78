"""Errors that a user can fix. Each names what failed, why, what to do, and the exit code of the command line."""


class MapolicyError(Exception):
    """One line for the user: `<what>: <why>; <what to do>`.

    Args:
        what: the file, flag or step that failed.
        why: what was found, and what was expected.
        remedy: what to type or change; empty where the user can do nothing.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(f"{what}: {why}; {remedy}" if remedy else f"{what}: {why}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Processes of a DataLoader or a pool send exceptions by pickle.
        return type(self), (self.what, self.why, self.remedy)


class UsageError(MapolicyError):
    """A flag or a name that is not valid, or a combination that is not."""

    exit_code = 2


class InputError(MapolicyError):
    """A bundle, data set, checkpoint or configuration that cannot be used."""

    exit_code = 3


class TrainingError(MapolicyError):
    """Training cannot continue: a loss is not finite, or memory has run out."""

    exit_code = 4


class DivergenceError(TrainingError):
    """A loss or a parameter is not finite; the run may go back to an earlier state."""


class EnvironmentFault(MapolicyError):  # noqa: N818 - EnvironmentError is a builtin, and means something else
    """A fault of the machine: the disk is full, a folder is not writable, another process has ended."""

    exit_code = 5


class FolderInUseError(MapolicyError):
    """Another run uses the run folder."""

    exit_code = 6
