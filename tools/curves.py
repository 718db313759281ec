"""Door to `segtrain curves`: see segtrain/cli/curves.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["curves", *sys.argv[1:]]))
