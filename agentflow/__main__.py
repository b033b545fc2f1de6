"""`python -m agentflow`: the command line."""

from agentflow.cli import main

main()
