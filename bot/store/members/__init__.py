"""What is stored about a member."""
