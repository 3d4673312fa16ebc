"""The examples ask the same running Darkroom as the tests of `darkroom mcp`."""

from shared.running_darkroom import darkroom, data_folder

__all__ = ["darkroom", "data_folder"]
