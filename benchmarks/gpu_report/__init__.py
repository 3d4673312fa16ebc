"""The `darkroom gpu-report` benchmark: what this GPU does with our engine, as files to attach to an issue."""
