"""Pictures beside the prompt: from a recipe's control and reference pictures to additional inputs of a network."""
