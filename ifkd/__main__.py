"""`python -m ifkd`, for torchrun."""

import sys

from ifkd.cli import main

sys.exit(main())
