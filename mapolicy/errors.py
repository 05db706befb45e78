"""Errors that a user can mend: each says what failed, why, what to do, and what the command line exits with."""


class MapolicyError(Exception):
    """One line for the user: `<what>: <why>; <what to do>`.

    Args:
        what: the thing that failed: a file, a flag, a step.
        why: what was found, and what was expected instead.
        remedy: what to type or change; may be empty where nothing can be done.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(f"{what}: {why}; {remedy}" if remedy else f"{what}: {why}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # DataLoader workers send their exceptions through the pickle protocol of multiprocessing.
        return type(self), (self.what, self.why, self.remedy)


class UsageError(MapolicyError):
    """A flag, a name or a combination of them that cannot be meant."""

    exit_code = 2


class InputError(MapolicyError):
    """A bundle, data set, checkpoint or configuration that cannot be used."""

    exit_code = 3


class TrainingError(MapolicyError):
    """Training cannot go on: a loss is not finite, memory has run out."""

    exit_code = 4


class DivergenceError(TrainingError):
    """A number that is not finite: the run can go back to a state where all were."""


class EnvironmentFault(MapolicyError):  # noqa: N818 - EnvironmentError is a builtin, and means something else
    """The machine does not let us: disk full, folder not writable, a dead peer."""

    exit_code = 5


class FolderInUseError(MapolicyError):
    """Another run holds the run folder."""

    exit_code = 6
