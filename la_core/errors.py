"""Everything la_core raises on purpose.

    LaCoreError
    ├── InputError (ValueError)      an argument cannot be used as it is
    │   ├── ShapeError               wrong number of dimensions, or two sizes that must agree and do not
    │   ├── KindError (TypeError)    wrong dtype, library or device
    │   ├── RangeError               a number or an index outside what is allowed
    │   └── NotFiniteError           NaN or infinity
    ├── SettingsError (ValueError)   a setting that no run could use
    ├── DataError                    an empty source, an unreadable or missing image: names the file or the index
    ├── BackendError                 an unknown backend, or one whose library is not installed: says what to install
    ├── DistributedError             another process of the run died, hangs, or has other settings, data or shapes
    ├── RunFolderError               a run folder that cannot be written, holds something already, or is in use
    └── CheckpointError              a checkpoint that is damaged, of another run, or cannot be written

Terminated (SystemExit) is no error: a run that was asked to end by SIGTERM has saved itself, and the status is 143.

A message says what was expected, what came, and, where it is not plain, what to do. It is raised before any state
changes: the bank, the labels and the arguments are what they were.
"""

from __future__ import annotations


class LaCoreError(Exception):
    """The root: ``except LaCoreError`` catches whatever la_core raises on purpose."""


class InputError(LaCoreError, ValueError):
    """An argument cannot be used as it is."""


class ShapeError(InputError):
    """Wrong number of dimensions, or two sizes that must agree and do not."""


class KindError(InputError, TypeError):
    """Wrong dtype, library or device."""


class RangeError(InputError):
    """A number or an index outside what is allowed."""


class NotFiniteError(InputError):
    """NaN or infinity where a finite number is needed."""


class SettingsError(LaCoreError, ValueError):
    """A setting that no run could use."""


class DataError(LaCoreError):
    """An empty source, an unreadable or a missing image."""


class BackendError(LaCoreError):
    """An unknown backend, or one whose library is not installed."""


class DistributedError(LaCoreError):
    """Another process of the run has died, does not answer in time, or has other settings, data or shapes."""


class RunFolderError(LaCoreError):
    """A run folder that cannot be written, that holds something already, or in which another run is at work."""


class CheckpointError(LaCoreError):
    """A checkpoint that is damaged, that belongs to another run or a newer version, or that cannot be written."""


class Terminated(SystemExit):
    """A run was asked to end (SIGTERM), finished its step, and saved itself. Uncaught, the exit status is 143."""

    def __init__(self, message: str) -> None:
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message
