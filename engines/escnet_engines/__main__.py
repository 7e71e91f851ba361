"""``python -m escnet_engines`` is ``escnet-build``."""

import sys

from .command import main

sys.exit(main())
