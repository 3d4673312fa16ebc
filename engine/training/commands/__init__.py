"""What can be typed after `darkroom train`: one file a command. Torch and all that is large comes with a call."""
