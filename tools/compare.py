"""Door to `segtrain compare`: see segtrain/cli/compare.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
