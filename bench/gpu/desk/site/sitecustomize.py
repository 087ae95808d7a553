"""Found by every Python that :mod:`bench.gpu.desk` starts, and by those that they start."""

import os

if os.environ.get("FASTRNN_DESK"):
    from bench.gpu.desk import later

    later.watch()
