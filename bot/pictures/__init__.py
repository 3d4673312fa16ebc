"""Pictures: their store, uploads from outside (in a sandboxed process), films, grids, sheets and the gallery."""
