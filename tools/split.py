"""Door to `segtrain split`: see segtrain/cli/split.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["split", *sys.argv[1:]]))
