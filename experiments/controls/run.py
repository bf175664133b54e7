"""The whole calibration: simulated scores, then small studies end to end.

    uv run python experiments/controls/run.py

Takes under an hour on two cores and writes the csv files beside this file; README.md there reads them.
"""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    for name in ("simulated.py", "worlds.py"):
        subprocess.run([sys.executable, Path(__file__).with_name(name)], check=True)
