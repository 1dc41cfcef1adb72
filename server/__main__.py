"""`python -m server` is the command `notification-server`."""

import sys

from server.cli import main

sys.exit(main())
