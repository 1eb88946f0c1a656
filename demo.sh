#!/usr/bin/env bash
# Set everything up, then train, evaluate, caption, draw all figures and write a page of them, on images that the project
# draws itself: about 6 minutes on 2 cores after the set-up, without a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. common/setup.sh
. .venv/bin/activate
rm -rf runs/demo

step() { printf '\n== %s\n' "$1"; }

step "Fine-tune a small pretrained ViT, with SAM around Adam"
python p1_train.py --data demo --arch test_vit --weights weights/demo_vit.pt --sam --epochs 15 --lr 1e-3 --holdout 0 \
    --output runs/demo/pretrained
step "Train the same ViT from random weights, with Adam"
python p1_train.py --data demo --arch test_vit --scratch --optimizer adam --epochs 15 --lr 1e-3 --holdout 0 \
    --output runs/demo/scratch
step "Evaluate both on images that neither has seen"
python p1_eval.py data/demo/val --checkpoint runs/demo/scratch/best.pt
python p1_eval.py data/demo/val runs/demo/pred.csv --checkpoint runs/demo/pretrained/best.pt --json runs/demo/result.json
step "Draw what the models have learned"
python p1_viz_posembed.py --checkpoint runs/demo/pretrained/best.pt runs/demo/scratch/best.pt \
    --output runs/demo/figures/posembed.png
python p1_viz_attn.py data/demo/val/2_0.jpg data/demo/val/5_1.jpg data/demo/val/8_2.jpg \
    --checkpoint runs/demo/pretrained/best.pt --output-dir runs/demo/figures --sheet --masks data/demo/masks/val --occlusion
step "Caption scenes that the captioner has not seen, and ask whether each word looks at what it names"
python p2_eval.py --data demo --checkpoint weights/demo_captioner.pt --json runs/demo/captions.json
python p2_caption_viz.py data/scenes/val/1.jpg data/scenes/val/2.jpg data/scenes/val/3.jpg \
    --checkpoint weights/demo_captioner.pt --output-dir runs/demo/captions --all
step "Write a page to look inside: an image of each class, and those that the model gets wrong"
wrong=$(awk -F, 'NR > 1 { split($1, name, "_"); if (name[1] != $2) print "data/demo/val/" $1 }' runs/demo/pred.csv)
photos=$(printf '%s\n' data/demo/val/?_0.jpg $wrong | sort -u)
python p1_viz_attn.py $photos --checkpoint runs/demo/pretrained/best.pt --output-dir runs/demo/attention --all \
    --masks data/demo/masks/val
python report_page.py --output runs/demo/index.html --runs runs/demo/pretrained runs/demo/scratch \
    --posembed runs/demo/figures/posembed.npz --attention runs/demo/attention --captions runs/demo/captions \
    --pointing-game runs/demo/captions.json

step "Done. Look at"
ls -1 runs/demo/*/curves.png runs/demo/figures/*.png runs/demo/captions/*.png runs/demo/pred.csv runs/demo/*.json
step "Open in a browser"
echo "$PWD/runs/demo/index.html"
