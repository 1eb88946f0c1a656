"""Train an image captioner: a small one from random weights, or a checkpoint of CATR further.

A small one on scenes that the project draws itself, about 5 minutes on 2 cores:

    python p2_train.py --data demo --output runs/captioner

CATR's published weights further, on COCO (several GPUs: `torchrun --nproc-per-node 4 p2_train.py ...`):

    python p2_train.py --data coco --checkpoint downloads/catr.pth --vocab downloads/vocab.txt --lr 1e-5 \\
        --precision bf16 --output runs/catr

`--data DIR` is in COCO's layout: `annotations/captions_train2017.json` and the photos in `train2017/`, or the same without
a year. Each caption counts as one image. A part of the photos is held out to choose the best epoch; `val` is never read:
that is for p2_eval.py. Without `--checkpoint` the vocabulary is `DIR/vocab.txt`, or the file `--vocab`.

A run that was stopped or killed goes on with the same command and `--resume`, and ends with the same weights, bit for
bit, as one that was not. Exit code: 0; 2 for bad input; 3 if it stopped at a loss that is not finite, or because another
process failed; 130 and 143 after SIGINT and SIGTERM, saved.
"""

import argparse
import sys
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors
from datasets import decode
from engine.flags import add_training_flags


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", required=True, metavar="DIR", help="folder in COCO's layout; or `demo`: scenes drawn within a minute")
    add("--output", type=Path, required=True, metavar="DIR", help="receives checkpoints, metrics, settings and curves")
    add("--holdout", type=number(float, low=0, high=0.9), default=0.02, metavar="FRACTION",
        help="part of the photos that chooses the epoch; 0 trains on all and takes the last (%(default)s)")

    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="train this one further, of CATR or of p2_train.py; without it, a small one from random weights")
    add("--vocab", type=Path, metavar="FILE", help="the vocabulary of a CATR checkpoint or of a new captioner")

    add_training_flags(parser, optimizer="AdamW", lr=7e-4, batch_size=16, epochs=5)
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    args.optimizer = args.optimizer or ("adam" if args.sam else "adamw")
    args.sam = bool(args.sam)

    # After the arguments, so that --help and typing errors answer at once.
    import torch

    from datasets import captions, scenes
    from engine import distributed
    from engine.device import autocast
    from engine.training import Run, moved
    from models import catr, decoding
    from models.tokenizer import Tokenizer

    run = Run(args)
    if run.finished:
        return 0

    # Data
    data = distributed.main_process_first(lambda: scenes.write_scenes(scenes.DEMO_DATA)) if args.data == "demo" else Path(args.data)
    folder = captions.read_captions(data, "train")
    fingerprint = folder.fingerprint()
    run.check_images(fingerprint, folder.root)
    to_fit, to_hold_out = captions.random_holdout(len(folder.names), args.holdout, args.seed)
    names, texts = folder.keep(to_fit).pairs()
    held_out_names, held_out_texts = folder.keep(to_hold_out).pairs()

    # Model
    if run.saved:  # the weights come with the rest of the state
        model, tokenizer = catr.CATR(catr.config_of(run.saved)), Tokenizer(run.saved["vocabulary"], args.output)
    elif args.checkpoint:
        model, tokenizer = catr.open_captioner(args.checkpoint, args.vocab)
    else:
        tokenizer = Tokenizer.from_file(args.vocab or data / "vocab.txt")
        model = catr.CATR(catr.small_config(len(tokenizer.vocabulary)))
    config = model.config
    model.to(run.device).train()

    # Training. None is the caption of no photo, for a process that has none left.
    def transform(photo):
        return catr.preprocess(photo, config)

    def encode(text):
        if text is None:
            return [Tokenizer.PAD] * 2
        return [tokenizer.start, *tokenizer.caption(text, config.positions)]

    fit_dataset = captions.CaptionDataset(folder.root, names + names[:1], texts + [None], transform, encode)
    held_out_dataset = captions.CaptionDataset(folder.root, distributed.shard(held_out_names),
                                               distributed.shard(held_out_texts), transform, encode)
    held_out_loader = run.loader(held_out_dataset, batch_size=args.batch_size, collate_fn=decoding.collate)

    def losses(model, batch):
        photos, ids = batch
        return decoding.token_losses(model(photos, ids[:, :-1]), ids)

    @torch.no_grad()
    def evaluate(model, until_stopped):
        was_training = model.training
        model.eval()
        sums = torch.zeros(2)
        for batch in until_stopped(held_out_loader):
            with autocast(run.device, args.precision):
                sums += torch.stack(losses(model, moved(batch, run.device))).cpu()
        model.train(was_training)
        return sums.tolist()

    run.train(model, fit_dataset, names, losses,
              fields=catr.checkpoint_fields(config, tokenizer.vocabulary), fingerprint=fingerprint,
              about={}, title=f"captioner of {sum(map(torch.numel, model.parameters())) / 1e6:.1f} M parameters",
              evaluate=evaluate, held_out=len(held_out_names), collate=decoding.collate,
              explaining=lambda: decode.explaining_bad_images(folder.root, folder.names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
