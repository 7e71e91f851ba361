"""``python -m escnet_bench`` is ``escnet-bench``."""

import sys

from .command import main

sys.exit(main())
