"""Door to `segtrain doctor`: see segtrain/cli/doctor.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["doctor", *sys.argv[1:]]))
