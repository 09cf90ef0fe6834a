"""A new project in a minute: a small whole one from a template, or one from the files of another tool.

writing     a folder from a template
evals       promptfoo's configuration and OpenAI Evals' samples, as a project
templates   classify (no Python), extract, generate, advise, rag: each with rows and tests of its own; lora, diffusion, clip and
            federated: each with rows of its own, and the files of `reader`
"""

from dspy_toolkit.scaffold.evals import from_evals
from dspy_toolkit.scaffold.writing import TEMPLATES, NewProject, new_project

__all__ = ["TEMPLATES", "NewProject", "from_evals", "new_project"]
