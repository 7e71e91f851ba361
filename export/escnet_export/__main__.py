"""``python -m escnet_export`` is ``escnet-export``."""

import sys

from .command import main

sys.exit(main())
