"""Loads a pipeline: number formats, single files, an estimate of its memory."""
