"""``python3 -m pyinit_image.cli``."""

import sys

from . import main

sys.exit(main())
