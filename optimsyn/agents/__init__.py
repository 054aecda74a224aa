"""Tools for agents: what a coding agent may do with optimsyn, and the MCP server that offers it."""
