"""Door to `segtrain find-lr`: see segtrain/cli/find_lr.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["find_lr", *sys.argv[1:]]))
