"""`darkroom mcp`: lets an assistant draw with a running Darkroom, by the Model Context Protocol."""
