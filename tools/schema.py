"""Door to `segtrain schema`: see segtrain/cli/schema.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["schema", *sys.argv[1:]]))
