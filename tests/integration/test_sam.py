import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_recipe_of_the_readme_runs_with_sam_py_alone(tmp_path):
    section = (ROOT / "README.md").read_text().split("## SAM alone")[1]
    recipe = section.split("```python\n")[1].split("```")[0]
    assert len(recipe.splitlines()) <= 20
    (tmp_path / "recipe.py").write_text(recipe)
    shutil.copy(ROOT / "sam.py", tmp_path)
    result = subprocess.run([sys.executable, "recipe.py"], cwd=tmp_path, capture_output=True, text=True,
                            check=True)
    assert float(result.stdout.split("accuracy ")[1]) > 0.95
