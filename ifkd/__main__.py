"""Run the command line as `python -m ifkd`, for torchrun."""

import sys

from deploy.cli.main import main

sys.exit(main())
