"""Reports, held pictures, who may see what."""
