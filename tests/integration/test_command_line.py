import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.documented import SCRIPTS, commands
from tests.helpers.training import TRAIN

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def places(run, shapes, captioners, tmp_path_factory):
    """Paths that the cases below name in braces, most of them bad; `out` is each case's own."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("empty", "no_train", "untrained/train", "one_class/train", "text/train", "photos",
                 "no_captions"):
        (folder / name).mkdir(parents=True)
    (folder / "file").write_text("x")
    for i in range(2):
        Image.new("RGB", (20, 20)).save(folder / "one_class" / "train" / f"0_{i}.png")
        (folder / "text" / "train" / f"{i}_1.jpg").write_text("not an image")
    (folder / "photos" / "cut.jpg").write_bytes((shapes / "val" / "0_0.jpg").read_bytes()[:600])
    saved = torch.load(run / "best.pt", weights_only=True)
    torch.save({**saved, "arch": "vit_tiny_patch16_224"}, folder / "other_arch.pt")
    spoilt = {key: value * float("nan") for key, value in saved["state_dict"].items()}
    torch.save({**saved, "state_dict": spoilt}, folder / "nan.pt")
    for path in captioners.iterdir():
        (folder / path.name).symlink_to(path)
    Image.new("RGB", (400, 1)).save(folder / "narrow.png")
    return {"tmp": folder, "run": run, "best": run / "best.pt", "data": shapes, "val": shapes / "val"}


BAD = {  # by script: arguments, and what the error says
    "p1_train.py": [
        ("--data {tmp}/missing --output {out}", "missing/train does not exist"),
        ("--data {tmp}/file --output {out}", "file/train does not exist"),
        ("--data {tmp}/no_train --output {out}", "no_train/train does not exist"),
        ("--data {data}/train --output {out}", "train/train does not exist: name with --data"),
        ("--data {tmp}/untrained --output {out}", "untrained/train holds no images"),
        ("--data {tmp}/one_class --output {out}", "training needs two"),
        ("--data {tmp}/text --output {out} --holdout 0", "2 files of 2"),
        ("--data {tmp}/text --output {out} --skip-bad", "holds no image that can be used"),
        ("--data {data} --output {tmp}/file", "is a file"),
        ("--data {data} --output {run}", "--resume"),
        ("--data {data} --output {out} --arch vit_tinny_patch16_224", "did you mean vit_tiny_patch16_224"),
        ("--data {data} --output {out} --arch resnet18", "name a timm VisionTransformer"),
        ("--data {data} --output {out} --weights {tmp}/missing.pt", "missing.pt does not exist"),
        ("--data {data} --output {out} --weights {tmp}/file", "not a weights file"),
        ("--data {data} --output {out} --arch deit_tiny_patch16_224 --weights {best}",
         "was made for test_vit"),
        ("--data {data} --output {out} --weights {best} --scratch", "not allowed with"),
        ("--data {data} --output {out} --lr -1", "--lr"),
        ("--data {data} --output {out} --lr nan", "--lr"),
        ("--data {data} --output {out} --epochs 0", "--epochs"),
        ("--data {data} --output {out} --batch-size x", "--batch-size"),
        ("--data {data} --output {out} --holdout 1", "--holdout"),
        ("--data {data} --output {out} --epochs 1" + 400 * "0", "--epochs"),
        ("--data {data} --output {out} --seed 18446744073709551616", "--seed"),
        ("--data {data} --output {out} --save-every 0", "--save-every"),
        ("--data {data} --output {out} --save-every 3m", "--save-every"),
        ("--data {data} --output {out} --colour red", "--colour"),
        ("--output {out}", "--data"),
        ("--data {data} --output {out} --recipe {tmp}/missing.toml", "missing.toml does not exist"),
        ("--data {data} --output {out} --recipe {tmp}/file", "is not TOML"),
        ("--data {data} --output {out} --layer-decay 1.1", "--layer-decay"),
        ("--data {data} --output {out} --layer-decay 0", "--layer-decay"),
        ("--data {data} --output {out} --head-init zeros", "--head-init"),
        ("--data {data} --output {out} --rand-augment 11", "--rand-augment"),
        ("--data {data} --output {out} --mixup -1", "--mixup"),
        ("--data {data} --output {out} --crop-pct 1.2", "--crop-pct"),
        ("--data {tmp}/text --output {out} --holdout 0 --head-init probe", "2 files of 2"),
    ],
    "p1_eval.py": [
        ("{tmp}/missing --checkpoint {best}", "missing does not exist"),
        ("{tmp}/file --checkpoint {best}", "is not a folder"),
        ("{tmp}/empty --checkpoint {best}", "holds no images"),
        ("{tmp}/photos {out}/p.csv --checkpoint {best} --workers 0", "1 file of 1"),
        ("{tmp}/photos {out}/p.csv --checkpoint {best} --workers 0 --skip-bad", "no image that can be used"),
        ("{val} --checkpoint {tmp}/missing.pt", "missing.pt does not exist"),
        ("{val} --checkpoint {tmp}", "is not a file"),
        ("{val} --checkpoint {tmp}/file", "not a weights file"),
        ("{val} --checkpoint {tmp}/other_arch.pt", "do not fit its own architecture"),
        ("{val} --checkpoint {tmp}/nan.pt", "not finite"),
        ("{val} {tmp}/file/p.csv --checkpoint {best}", "file"),
        ("{val} --checkpoint {best} --json {tmp}/empty", "empty is a folder"),
        ("{val} --checkpoint {best} --expect 94", "--expect"),
        ("{val} {out}/p.csv --checkpoint {best} --top 5", "--top belongs to --json FILE"),
    ],
    "p1_export.py": [
        ("--output-dir {out}/new", "--checkpoint"),
        ("--checkpoint {tmp}/file --output-dir {out}/new", "not a weights file"),
        ("--checkpoint {best} --output-dir {tmp}/file", "is not an empty folder"),
    ],
    "p1_viz_posembed.py": [
        ("--output {out}/f.png", "--checkpoint"),
        ("--checkpoint {best} --output {out}/f.gif", ".png, .pdf or .svg"),
        ("--checkpoint {best} --weights {best} --output {out}/f.png", "--weights"),
        ("--checkpoint {tmp}/file --output {out}/f.png", "not a weights file"),
        ("--checkpoint {best} --output {out}/f.png --image-size 100",
         "must be a multiple of the patch, 16x16"),
        ("--checkpoint {best} --output {out}/f.png --image-size 1x2x3", "--image-size"),
        ("--arch swin_tiny_patch4_window7_224 --output {out}/f.png",
         "is a SwinTransformer: name a timm VisionTransformer, Beit or Eva"),
    ],
    "p1_viz_attn.py": [
        ("{val} --arch cait_xxs24_224 --output-dir {out}",
         "is a Cait: name a timm VisionTransformer, Beit or Eva"),
        ("{val} --checkpoint {best} --output-dir {out} --block 6", "there is no block 6: the model has 6"),
        ("{val} --checkpoint {best} --output-dir {out} --block -7 --all",
         "there is no block -7: the model has 6"),
        ("{val} --checkpoint {best} --output-dir {out} --block 1 --rollout", "not allowed with"),
        ("{val} {data}/train --checkpoint {best} --output-dir {out} --sheet", "rename one"),
        ("{data}/val {data}/val --checkpoint {best} --output-dir {out}", "rename one"),
        ("{data}/train {tmp}/photos --checkpoint {best} --output-dir {out} --sheet", "1 file of 33"),
        ("{val} --checkpoint {best} --output-dir {out} --masks {tmp}/empty", "0_0.png does not exist"),
        ("{tmp}/missing.jpg --checkpoint {best} --output-dir {out}", "missing.jpg does not exist"),
        ("{tmp}/empty --checkpoint {best} --output-dir {out}", "holds no images"),
        ("{tmp}/photos --checkpoint {best} --output-dir {out}", "1 file of 1"),
        ("{val} --checkpoint {best} --weights {best} --output-dir {out}", "--weights"),
        ("{val}/0_0.jpg --checkpoint {best} --output-dir {tmp}/file", "file"),
    ],
    "p1_viz_landscape.py": [
        ("{best} --data {data} --output {out}/f.gif", ".png, .pdf or .svg"),
        ("{best} --output {out}/f.png", "--data"),
        ("{best} --data {data} --output {out}/f.png --rho 0.05 0", "--rho"),
        ("{best} --data {tmp}/missing --output {out}/f.png", "missing/train does not exist"),
        ("{tmp}/file --data {data} --output {out}/f.png", "not a weights file"),
        ("{tmp}/nan.pt --data {data} --output {out}/f.png", "not finite"),
        ("{best} --data {data} --output {tmp}/file/f.png", "file"),
    ],
    "p1_report.py": [
        ("--output {out}", "RUNS"),
        ("{run}", "--output"),
        ("{tmp}/missing --output {out}", "missing does not exist: name output folders of p1_train.py"),
        ("{tmp}/empty --output {out}", "empty is not a run folder"),
        ("{run} --output {tmp}/file", "is a file: name a folder"),
        ("{run} --output {run}", "holds a training run"),
        ("{run} --output {out}", "none of the runs can be used"),
        ("{run} --output {out} --images {tmp}/missing", "missing does not exist: name the folder of photos"),
        ("{run} --output {out} --images {tmp}/file", "is not a folder"),
    ],
    "p2_train.py": [
        ("--data {tmp}/missing --output {out}", "missing does not exist"),
        ("--data {tmp}/no_captions --output {out}", "no file captions_train*.json"),
        ("--data {tmp}/coco --output {out} --checkpoint {best}",
         "is not a captioner: it is a classifier, test_vit"),
        ("--data {tmp}/coco --output {out} --checkpoint {tmp}/catr.pth", "pass the vocab.txt"),
        ("--data {tmp}/coco --output {out} --checkpoint {tmp}/catr.pth --vocab {tmp}/short.txt",
         "has 9 tokens"),
        ("--data {tmp}/coco --output {out} --checkpoint {tmp}/captioner.pt --vocab {tmp}/short.txt",
         "leave --vocab out"),
        ("--data {tmp}/coco --output {out} --vocab {tmp}/file", "is no WordPiece vocabulary"),
        ("--data {tmp}/coco --output {out} --holdout 1", "--holdout"),
        ("--data {tmp}/coco --output {run}", "--resume"),
    ],
    "p2_eval.py": [
        ("--data {tmp}/coco --checkpoint {best}", "is not a captioner"),
        ("--data {tmp}/no_captions --checkpoint {tmp}/captioner.pt", "no file captions_val*.json"),
        ("--data {tmp}/coco --checkpoint {tmp}/captioner.pt --layer 1", "the decoder has 1"),
        ("--data {tmp}/coco --checkpoint {tmp}/captioner.pt --max-tokens 41", "has positions for 40"),
        ("--data {tmp}/coco --checkpoint {tmp}/captioner.pt --json {tmp}/empty", "empty is a folder"),
    ],
    "p2_caption_viz.py": [
        ("{val} --output-dir {out} --checkpoint {best}", "is not a captioner: it is a classifier, test_vit"),
        ("{val} --output-dir {out} --checkpoint {tmp}/catr.pth --vocab {tmp}/short.txt", "has 9 tokens"),
        ("{tmp}/narrow.png --output-dir {out} --checkpoint {tmp}/captioner.pt", "1 file of 1 cannot be used"),
        ("{val} --output-dir {out} --checkpoint {tmp}/captioner.pt --caption ' '", "--caption is empty"),
        ("{val} --output-dir {out} --checkpoint {tmp}/captioner.pt --layer -2", "the decoder has 1"),
        ("{val} --output-dir {out} --checkpoint {tmp}/captioner.pt --max-tokens 41", "has positions for 40"),
        ("{tmp}/photos --output-dir {out} --checkpoint {tmp}/captioner.pt", "1 file of 1"),
        ("{val} --output-dir {tmp}/file --checkpoint {tmp}/captioner.pt", "file"),
    ],
}


@pytest.mark.parametrize("script, arguments, expected", [
    (script, *case) for script, cases in BAD.items() for case in cases
])
def test_bad_input_is_one_error_line_and_exit_code_2(places, tmp_path, capsys, script, arguments, expected):
    out = tmp_path / "out"
    arguments = [argument.format(**places, out=out) for argument in shlex.split(arguments)]
    if script == "p1_train.py":  # the case's own flags come last and win
        defaults = [] if "--arch" in arguments else TRAIN[:2]
        defaults += [] if "--weights" in arguments else ["--scratch"]
        arguments = [*defaults, "--epochs", "1", "--workers", "0", *arguments]
    try:
        code = SCRIPTS[script].main(arguments)
    except SystemExit as exit:
        code = exit.code
    errors = capsys.readouterr().err.splitlines()
    lines = [line for line in errors if not line.startswith(("  ", "note: "))]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], errors
    assert not list(out.glob("*")), "nothing is left behind"


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_answers_as_a_process_of_its_own(script, tmp_path):
    def call(*arguments):
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path)

    done = call(REPOSITORY / script, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout and script in done.stdout
    done = call("-X", "importtime", REPOSITORY / script, "--help")
    assert " torch" not in done.stderr, "--help must not wait for torch"
    done = call(REPOSITORY / script, "--nonsense")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


DOCS = [f"docs/{page.name}" for page in sorted(REPOSITORY.glob("docs/*.md"))
        if page.name != "changes.md"]  # which has commands of before


@pytest.mark.parametrize("source", ["README.md", "demo.sh", *SCRIPTS, *DOCS])
def test_every_documented_command_is_one_that_the_scripts_take(source):
    text = (REPOSITORY / source).read_text().replace("\\\\\n", "\\\n")  # docstrings escape the backslash
    found = commands(text)
    assert found or source in DOCS
    for script, *arguments in found:
        module = SCRIPTS[script] if script != "-m" else importlib.import_module(
            {"benchmarks": "benchmarks.__main__"}.get(arguments[0], arguments[0]))
        arguments = arguments[script == "-m":]
        module.get_args_parser().parse_args(arguments)
