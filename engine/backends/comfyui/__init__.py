"""ComfyUI: a workflow in API format is filled and queued."""

from engine.process.backend_kinds import BackendKind

BACKEND = BackendKind("ComfyUI", "http://127.0.0.1:8188", takes_workflows=True)
