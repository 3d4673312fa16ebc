"""The `darkroom gpu-report` benchmark: measures our engine on this GPU and writes files to attach to an issue."""
