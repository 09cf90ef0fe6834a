"""The door for coding agents: an MCP server over what the commands know.

server   the tools: what may be read, and, where it is allowed, optimizing within a budget
jobs     optimizations that the server has started, each a process of its own
beside   what an optimization asks the model that is not in its budget
"""

from dspy_toolkit.agents.jobs import Job, Jobs
from dspy_toolkit.agents.server import make_server

__all__ = ["Job", "Jobs", "make_server"]
