"""The package of Triton's kernels, from outside."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_importing_fastrnn_does_not_import_triton() -> None:
    code = "import sys, fastrnn; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
