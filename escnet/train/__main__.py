"""``python -m escnet.train``, which torchrun can start several times."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
