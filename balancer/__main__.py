"""`python -m balancer`."""

import sys

from balancer.cli.main import main

sys.exit(main())
