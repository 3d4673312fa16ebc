"""A member's export, and the deletion of everything stored about them."""
