"""The broker that Darkroom starts itself, and the rights of its accounts."""
