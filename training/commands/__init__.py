"""The commands of `darkroom train`, one file each. They import torch and other large libraries only when called."""
