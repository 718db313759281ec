"""Door to `segtrain scan`: see segtrain/cli/scan.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["scan", *sys.argv[1:]]))
