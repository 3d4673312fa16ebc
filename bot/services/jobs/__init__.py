"""Makes jobs: from a prompt, from finished pictures, from a part of one."""
