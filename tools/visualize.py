"""Door to `segtrain visualize`: see segtrain/cli/visualize.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["visualize", *sys.argv[1:]]))
