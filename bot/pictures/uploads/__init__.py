"""Decodes pictures from outside in a sandboxed process, within bounds of time and memory."""
