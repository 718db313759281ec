"""The figures of loader and scan in docs/data-performance.md are those of the measurements that lie beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LOADER_ROWS = {
    "bare decode + transforms": "bare decode + transforms",
    "the same again": "the same again",
    "the same + torch.stack": "the same + `torch.stack`",
    "loader": "loader, in the same process",
    "loader, 2 workers": "loader, 2 workers on 2 cores",
    "loader, cache: disk": "loader, `data.cache: disk`",
    "loader, cache: ram": "loader, `data.cache: ram`",
}


def measured(name: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((DOCS / "measurements" / name).read_text())["rows"]
    return {row["name"]: row for row in rows}


@pytest.fixture
def page() -> str:
    return (DOCS / "data-performance.md").read_text()


def test_the_page_gives_the_loader_as_it_was_measured(page: str) -> None:
    rows = measured("data.json")
    assert rows.keys() == {"bare decode", *LOADER_ROWS}
    for name, told in LOADER_ROWS.items():
        row = rows[name]
        aim = row.get("aim", {"found_by_cpu_time": None, "at_least": None})
        cpu, least = (
            " " if value is None else f" {value:.2f} " for value in (aim["found_by_cpu_time"], aim["at_least"])
        )
        assert f"| {told} | {row['images_per_second']:.0f} | {row['to_transforms']:.2f} |{cpu}|{least}|\n" in page


def test_the_page_gives_the_scan_as_it_was_measured(page: str) -> None:
    rows = measured("data_scan.json")
    first, warm = (rows[name]["aim"] for name in ("scan, first", "scan, from its cache"))
    by_clock, by_cpu = (1 / first[key] for key in ("found", "found_by_cpu_time"))
    assert (
        f"| first scan | {by_clock:.2f} x the time of the bare decode of image and mask | {by_cpu:.2f} | 1.25 |" in page
    )
    by_clock, by_cpu = (100 / warm[key] for key in ("found", "found_by_cpu_time"))
    assert f"| scan from its cache | {by_clock:.1f} % of the first | {by_cpu:.1f} % | 2 % |" in page


def test_the_page_gives_long_lists_as_they_were_measured(page: str) -> None:
    result = json.loads((DOCS / "measurements/data_index.json").read_text())
    assert f"--index {result['settings']['samples']} --rounds {result['settings']['rounds']}\n" in page
    for row in result["rows"]:
        assert f" | {row['cpu_seconds']:.2f} | {row['to_plain_by_cpu_time']:.2f} |\n" in page
    peak, of_table, sent = (result[key] / 1e6 for key in ("peak_bytes", "table_peak_bytes", "sent_bytes"))
    assert f"Opening it takes {peak:.0f} MB at the peak, as a table {of_table:.0f} MB," in page
    assert f"({sent:.0f} MB)" in page
