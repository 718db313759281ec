"""The doctor: what it reports, and that each problem comes with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.cli import doctor
from segtrain.cli.main import main


def test_the_report_names_versions_devices_disk_and_ends_with_a_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = main(["doctor", "--folder", str(tmp_path)])
    told = capsys.readouterr().out
    for subject in (
        "python",
        "torch",
        "segmentation-models-pytorch",
        "albumentations",
        "opencv",
        "cuda",
        "cores",
        "disk",
    ):
        assert f"  {subject} " in told or f"! {subject} " in told
    assert told.splitlines()[-1] == "OK" if code == 0 else "problem" in told.splitlines()[-1]


def test_problems_are_marked_told_and_make_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [doctor.Finding("disk", "0.1 GiB", "too little"), doctor.Finding("cores", "2")]
    assert doctor.report(findings) == 1
    assert capsys.readouterr().out.splitlines() == [
        "! disk   0.1 GiB",
        "  cores  2",
        "problem: disk: too little",
        "1 problem",
    ]
    assert doctor.report(findings[1:]) == 0


def test_two_builds_of_opencv_are_a_problem_with_its_cure() -> None:
    finding = doctor.check_cv2_builds({"opencv-python": "5.0", "opencv-python-headless": "5.0"})
    assert finding.problem is not None
    assert "pip uninstall -y opencv-python opencv-python-headless" in finding.problem
    assert doctor.check_cv2_builds({}).problem is not None
    assert doctor.check_cv2_builds({"opencv-python": "5.0"}).problem is None


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    findings = doctor.check_disk(tmp_path / "not" / "there")
    assert str(tmp_path) in findings[0].found
    assert not (tmp_path / "not").exists()
    assert findings[1].problem is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_shared_memory_is_passed_over(tmp_path: Path) -> None:
    assert doctor.check_shared_memory(tmp_path / "none") == []
    assert len(doctor.check_shared_memory(tmp_path)) == 1
