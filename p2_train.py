"""Train an image captioner: a small one from random weights, or a checkpoint of CATR further.

A small one on scenes that the project draws itself, about 5 minutes on 2 cores:

    python p2_train.py --data demo --output runs/captioner

CATR's published weights further, on COCO (several GPUs: `torchrun --nproc-per-node 4 p2_train.py ...`):

    python p2_train.py --data coco --checkpoint downloads/catr.pth --vocab downloads/vocab.txt --lr 1e-5 \\
        --output runs/catr

`--data DIR` is in COCO's layout: `annotations/captions_train2017.json` and the photos in `train2017/`, or the
same without a year. Each caption counts as one image. A part of the photos is held out to choose the best
epoch; `val` is never read: that is for p2_eval.py. Without `--checkpoint` the vocabulary is `DIR/vocab.txt`,
or the file `--vocab`.

A run that was stopped or killed goes on with the same command and `--resume`, and ends with the same weights,
bit for bit, as one that was not. Exit code: 0; 2 for bad input; 3 if it stopped at a loss that is not finite,
or because another process failed; 130 and 143 after SIGINT and SIGTERM, saved.
"""

import sys
from functools import partial
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors
from engine.flags import add_training_flags


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", required=True, metavar="DIR",
        help="folder in COCO's layout; or `demo`: scenes drawn within a minute")
    add("--output", type=Path, required=True, metavar="DIR",
        help="receives checkpoints, metrics, settings and curves")
    add("--holdout", type=number(float, low=0, high=0.9), default=0.02, metavar="FRACTION",
        help="part of the photos that chooses the epoch; 0 trains on all and takes the last (%(default)s)")
    add("--skip-bad", action="store_true", help="go on without photos that cannot be used")

    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="train this one further, of CATR or of p2_train.py; without it, a small one from random weights")
    add("--vocab", type=Path, metavar="FILE",
        help="the vocabulary of a CATR checkpoint or of a new captioner")

    add_training_flags(parser, optimizer="AdamW", lr=7e-4, batch_size=16, epochs=5)
    return parser


def parse_args(argv):
    """The arguments, with the optimizer that they mean: the one that is named, else AdamW, or Adam in SAM."""
    args = get_args_parser().parse_args(argv)
    args.optimizer = args.optimizer or ("adam" if args.sam else "adamw")
    args.sam = bool(args.sam)
    return args


def open_captioner(args, run, data):
    """The CATR to train and its Tokenizer; random weights where a saved state will follow."""
    from models import catr
    from models.tokenizer import Tokenizer

    if run.saved:
        return catr.CATR(catr.config_of(run.saved)), Tokenizer(run.saved["vocabulary"], args.output)
    if args.checkpoint:
        return catr.open_captioner(args.checkpoint, args.vocab)
    tokenizer = Tokenizer.from_file(args.vocab or data / "vocab.txt")
    return catr.CATR(catr.small_config(len(tokenizer.vocabulary))), tokenizer


def training_ids(caption, tokenizer, positions):
    """The ids of a caption from start to end; two of padding for None, the caption of no photo."""
    if caption is None:
        return [tokenizer.PAD] * 2
    return [tokenizer.start, *tokenizer.caption(caption, positions)]


def train(args, run, folder, fingerprint, model, tokenizer):
    """Train a CATR on a CaptionedFolder, of which a part is held out to choose the epoch."""
    from datasets import captions
    from engine import distributed
    from engine.inference import sum_losses
    from engine.loop import Loop
    from engine.state import TrainingState
    from engine.step import OptimizerStep, build_optimizer
    from models import catr, decoding

    # Data
    to_fit, to_hold_out = captions.random_holdout(len(folder.names), args.holdout, args.seed)
    names, texts = folder.keep(to_fit).pairs()
    held_out = folder.keep(to_hold_out)
    held_out_names, held_out_texts = held_out.keep(run.usable(held_out.names)).pairs()
    transform = partial(catr.pixels, config=model.config)
    encode = partial(training_ids, tokenizer=tokenizer, positions=model.config.positions)
    # the last item stands for no photo, for a rank that has none left
    any_name = names[run.usable(names)[0]]
    dataset = captions.CaptionDataset(folder.root, [*names, any_name], texts + [None], transform, encode)
    sampler = run.sampler(names)
    photo_bytes = 3 * model.config.longer_side**2
    loader = run.loader(dataset, photo_bytes, batch_sampler=sampler, collate_fn=decoding.collate)
    local_held_out = captions.CaptionDataset(folder.root, distributed.shard(held_out_names),
                                             distributed.shard(held_out_texts), transform, encode)
    held_out_loader = run.loader(local_held_out, photo_bytes, batch_size=args.batch_size,
                                 collate_fn=decoding.collate)

    # Optimization
    def prepare(photos, ids):
        return list(map(catr.normalise, photos)), ids

    def loss(model, batch):
        photos, ids = batch
        return decoding.token_losses(model(photos, ids[:, :-1]), ids)

    def evaluate(model, until_stopped):
        return sum_losses(model, until_stopped(held_out_loader),
                          lambda model, batch: loss(model, prepare(*batch)), run.device, args.precision)

    ddp_model = distributed.data_parallel(model)
    optimizer, scaler = build_optimizer(args, model.parameters(), ddp_model), run.scaler()
    take_step = OptimizerStep(ddp_model, optimizer, scaler, loss, run.device, args.precision)
    state = TrainingState(model, optimizer, scaler, run.settings, fingerprint, {}, args.ema)
    saver = run.restore(state, catr.checkpoint_fields(model.config, tokenizer.vocabulary))

    parameters = sum(parameter.numel() for parameter in model.parameters())
    run.announce(f"captioner of {parameters / 1e6:.1f} M parameters", len(names), len(held_out_names))
    with Loop(state, saver, sampler, names, args, run.device) as loop:
        for _ in loop.epochs():
            for batches in loop.steps(loader, prepare):
                loop.end_step(*take_step(batches, loop.global_batch_size))
            loop.end_epoch(evaluate, len(held_out_names))


@reports_errors
def main(argv=None):
    args = parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    from datasets import captions, scenes
    from datasets.decode import explaining_bad_images
    from engine import distributed
    from engine.photos import REMEDY
    from engine.run import Run

    run = Run(args, get_args_parser().get_default)
    if run.finished:
        return run.finish()
    run.start()
    data = Path(args.data)
    if args.data == "demo":
        data = distributed.main_process_first(lambda: scenes.write_scenes(scenes.DEMO_DATA))
    folder = captions.read_captions(data, "train")
    names = run.choose_photos(folder.root, folder.names, {})
    folder = folder.keep([i for i, name in enumerate(folder.names) if name in run.photos.sizes])
    fingerprint = folder.fingerprint()
    run.check_images(fingerprint, folder.root)
    model, tokenizer = open_captioner(args, run, data)
    tokenizer.check_captions(folder.pairs()[1], folder.root)
    with explaining_bad_images(folder.root, [names[i] for i in run.usable(names)], remedy=REMEDY):
        train(args, run, folder, fingerprint, model.to(run.device).train(), tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
