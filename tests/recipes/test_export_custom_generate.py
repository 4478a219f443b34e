"""`recipes/export_custom_generate.py`."""

from hf_evidenceflow.recipes import export_custom_generate


def test_the_folder_holds_what_the_hub_needs(tmp_path):
    export_custom_generate.main(["--method", "swireasoning", "--output_dir", str(tmp_path / "swi")])
    files = sorted(path.relative_to(tmp_path / "swi").as_posix() for path in (tmp_path / "swi").rglob("*.*"))
    assert files == ["README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"]
    assert "- custom_generate" in (tmp_path / "swi" / "README.md").read_text()
