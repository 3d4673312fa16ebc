"""Reports, held pictures, and who may see which picture."""
