"""Share a trained model: write a checkpoint as timm and the Hugging Face hub load it.

    python p1_export.py --checkpoint runs/headline/best.pt --output-dir pets-vit

`--output-dir DIR` receives the weights (`model.safetensors`), timm's `config.json` with the names of the
classes, the preprocessing and the size of the images, and a model card, `README.md`: its accuracy is that of
p1_eval.py, if that has evaluated the run. Then this gives the same model, whose outputs are the same bits:

    timm.create_model("local-dir:pets-vit", pretrained=True)

and so does `"hf-hub:you/pets-vit"` once the folder is there (`hf upload you/pets-vit pets-vit`). p1_eval.py
and the figures take the folder as `--checkpoint`, p1_train.py as `--weights`.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, note, reports_errors
from common.errors import BadInput


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt of a training run")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="a new folder")
    return parser


def evaluated(checkpoint):
    """The Setting of the run whose best.pt a checkpoint is; None, and a note, where it is not evaluated."""
    from compare.runs import Study
    from engine.checkpointing import BEST

    run = checkpoint.path.resolve().parent
    try:
        if checkpoint.path.name != BEST:
            raise BadInput(f"it is not the {BEST} of a run")
        return Study([run]).settings[0]
    except BadInput as error:
        note(f"the card states no accuracy: {'; '.join(error.details) or error}")
        return None


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    from common.files import folder_written_whole, write_text
    from compare.card import model_card
    from models.checkpoint import open_checkpoint
    from models.exported import export

    checkpoint = open_checkpoint(args.checkpoint)
    settings = checkpoint.settings
    if not (isinstance(settings, dict) and {"arch", "optimizer", "sam", "adaptive"} <= settings.keys()):
        raise BadInput(f"{args.checkpoint} does not say how it was trained: it is damaged")
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise BadInput(f"--output-dir {args.output_dir} exists and is not an empty folder: name a new one")
    with folder_written_whole(args.output_dir) as folder:
        export(checkpoint, folder)
        write_text(folder / "README.md",
                   model_card(args.output_dir.resolve().name, checkpoint, evaluated(checkpoint)))
    print(f"{args.output_dir}: timm.create_model(\"local-dir:{args.output_dir}\", pretrained=True)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
