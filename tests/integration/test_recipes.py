import json

from tests.helpers.training import train


def test_a_run_by_a_recipe_goes_on_with_it(shapes, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("epochs = 1\nholdout = 0\nsam = true\nlabel-smoothing = 0.1")
    assert train(shapes, tmp_path / "run", "--recipe", file) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["label_smoothing"] == 0.1 and settings["sam"] is True and settings["recipe"] == str(file)
    assert train(shapes, tmp_path / "run", "--recipe", file, "--resume", "--epochs", 2) == 0
