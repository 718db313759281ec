"""Door to `segtrain prepare`: see segtrain/cli/prepare.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
