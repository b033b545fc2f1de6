"""`python -m agentflow`: the command line."""

import sys

from agentflow.cli import main

sys.exit(main())
