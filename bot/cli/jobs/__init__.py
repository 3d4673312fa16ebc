"""`darkroom jobs`: lists jobs, says why they wait, takes them up again."""
