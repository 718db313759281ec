"""The errors a user can cause: one tree, one clear line each."""

from __future__ import annotations


class SegtrainError(Exception):
    """Base of every error that the command line answers with one message and exit code 2.

    The message says what was found, what was expected, where (file, key, line) and what to do next.
    """


class ConfigError(SegtrainError):
    """The configuration, or an argument of a command, is wrong."""


class DataError(SegtrainError):
    """Images, masks, lists or labels are missing, unreadable or contradictory."""


class CheckpointError(SegtrainError):
    """A checkpoint cannot be found, read, written or matched with the model."""
