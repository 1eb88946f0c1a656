#!/usr/bin/env bash
# Fetch what the real runs need: bash hw_download.sh [PART ...], by default pets vit-base catr vocab
#     pets          Oxford-IIIT Pet: p1_data/{train,val}/{class}_{id}.jpg, p1_data/classes.txt, p1_data/masks
#     vit-tiny, vit-small, vit-base    timm's pretrained weights, to downloads/NAME.safetensors, for --weights
#     catr, catr-v1, catr-v2           CATR's weights, to downloads/catr.pth (v3), downloads/catr-v1.pth, ...
#     vocab         the vocabulary of bert-base-uncased, to downloads/vocab.txt
#     checkpoint    a trained one, for a grader, to downloads/checkpoint.pt: fill in its three lines below
#
# The same command goes on with an interrupted download. Each file is compared with the checksum given here,
# or else with the one that downloads/checksums.txt noted at the first download. Variables replace what is
# given here: VIT_TINY_URL (a mirror, or a file:// URL), VIT_TINY_SHA256, ... Exit code: 0, or 2 for an error.
set -euo pipefail
export LC_ALL=C
CHECKPOINT_URL=${CHECKPOINT_URL:-}        # where a trained checkpoint is
CHECKPOINT_SHA256=${CHECKPOINT_SHA256:-}  # its SHA-256
CHECKPOINT_EXPECT=${CHECKPOINT_EXPECT:-}  # the accuracy that p1_eval.py should find

PETS=https://www.robots.ox.ac.uk/~vgg/data/pets/data HUB=https://huggingface.co
TIMM=in21k_ft_in1k/resolve/main/model.safetensors CATR=https://github.com/saahiluppal/catr/releases/download
NOTES=downloads/checksums.txt VOCAB=07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
# part, prefix of its variables, file, URL, checksum (MD5 or SHA-256) if one is published
FILES="\
pets        PETS_IMAGES       images.tar.gz          $PETS/images.tar.gz 5c4f3ee8e5d25df40f4fd59a7f44e54c
pets        PETS_ANNOTATIONS  annotations.tar.gz     $PETS/annotations.tar.gz 95a8c909bbe2e81eed6a22bccdf3f68f
vit-tiny    VIT_TINY          vit-tiny.safetensors   $HUB/timm/vit_tiny_patch16_224.augreg_$TIMM
vit-small   VIT_SMALL         vit-small.safetensors  $HUB/timm/vit_small_patch16_224.augreg_$TIMM
vit-base    VIT_BASE          vit-base.safetensors   $HUB/timm/vit_base_patch16_224.augreg2_$TIMM
catr        CATR              catr.pth               $CATR/0.2/weight493084032.pth
catr-v1     CATR_V1           catr-v1.pth            $CATR/0.1/weights_9348032.pth
catr-v2     CATR_V2           catr-v2.pth            $CATR/0.2/weight389123791.pth
vocab       VOCAB             vocab.txt              $HUB/bert-base-uncased/resolve/main/vocab.txt $VOCAB
checkpoint  CHECKPOINT        checkpoint.pt"

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
is_web_page() { [ -f "$1" ] && head -c 1000 "$1" | grep -aqiE '^[^a-z]*<(!doctype|html|head|\?xml)'; }
# FILE NAMES: these lines of the headers of the last response
header() { tr -d '\r' 2> /dev/null < "$1" | awk -v RS= 'END { print }' | grep -iE "^($2):"; }

transfer() {  # VARIABLE URL PART: append to the part until it is whole
    local part=$3 mirror="log in, or set $1 to a mirror" id='etag|last-modified' was pause headers code answer
    case $2 in file://*) rm -f "$part"* ;; esac
    for pause in 0 1 2 3; do
        sleep "$pause"
        code=0 headers=$part.headers
        # it must be known what the part is a part of
        if ! was=$(header "$headers" "$id") || is_web_page "$part"; then rm -f "$part"; fi
        if [ -f "$part" ]; then
            ! header "$headers" content-length | grep -q " $(($(wc -c < "$part")))$" || return 0
            headers=$part.again
        fi
        answer=$(curl --fail --location --globoff --continue-at - --connect-timeout 20 --speed-time 60 \
            --output "$part" --dump-header "$headers" --write-out '%{http_code} %{content_type}' \
            "$([ -t 2 ] && echo --progress-bar || echo --silent)" "${2// /%20}") || code=$?
        if [[ $answer = 200\ text/html* ]] || is_web_page "$part"; then
            [ "$code" = 33 ] || rm -f "$part"*  # 33: it was not appended
            fail "$2 answered with a web page, not a file: $mirror"
        fi
        [ -s "$part" ] || rm -f "$part"*
        case $code:$answer in
            23:*) fail "no space is left for ${part%.part}: make room, and run this again to go on" ;;
            37:* | *:40[134]* | *:410*) fail "$2: not found or not allowed (HTTP ${answer%% *}): $mirror" ;;
            33:* | *:416*) rm -f "$part"* ;;  # no way to go on in the middle of a file
            *:206*) [ "$(header "$headers" "$id")" = "$was" ] || rm "$part"* ;;
        esac
        if [ "$code" = 0 ] && [ -f "$part" ]; then return; fi
    done
    fail "$2: the transfer stopped (curl: $code, HTTP ${answer%% *}): check the network, and run it again"
}

get() {  # VARIABLES FILE URL SUM: put the file in place, whole and checked
    local url=$1_URL md5=$1_MD5 sha256=$1_SHA256 file=$2.part next='the download was removed' sum actual
    if [ -e "$2" ]; then file=$2 next='remove it'; else transfer "$url" "${!url:-$3}" "$2.part"; fi
    ! is_web_page "$file" || fail "$2 is a web page, not a file: remove it, and run this again"
    sum=${!sha256:-${!md5:-${4:-$(sed -n "s|  $2\$||p" "$NOTES" 2> /dev/null || true)}}}
    actual=$(if [ ${#sum} = 32 ]; then md5sum; else sha256sum; fi < "$file" | cut -d ' ' -f 1)
    if [ -z "$sum" ]; then
        echo "$actual  $2" >> "$NOTES"
        echo "$2: no published checksum; its SHA-256 is noted in $NOTES, to be compared"
    elif [ "$actual" != "$sum" ]; then
        rm -f "$2.part"*
        fail "$2: its checksum is $actual, not $sum, as pinned or else noted in $NOTES" \
            "(remove that line if the new one is right): $next"
    fi
    [ "$file" = "$2" ] || mv "$file" "$2"
    rm -f "$2.part"*
    echo "$2 is there"
}

case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;; esac
[ $# -gt 0 ] || set -- pets vit-base catr vocab ${CHECKPOINT_URL:+checkpoint}
parts=$(cut -d ' ' -f 1 <<< "$FILES" | uniq)
for wanted in "$@"; do
    grep -qxF -e "$wanted" <<< "$parts" || fail "$wanted is no part: choose among ${parts//$'\n'/ }"
    [ "$wanted" != checkpoint ] || { [ "$CHECKPOINT_URL" ] && [ "$CHECKPOINT_SHA256" ]; } ||
        fail "checkpoint: set CHECKPOINT_URL and CHECKPOINT_SHA256, in the environment or in hw_download.sh"
done
for tool in curl python3 sha256sum; do command -v $tool > /dev/null || fail "no $tool: install it"; done
mkdir -p downloads
for wanted in "$@"; do
    if [ "$wanted" = pets ] && [ -e p1_data ]; then echo "p1_data is there"; continue; fi
    while read -r part variables file url sum; do
        [ "$part" != "$wanted" ] || get "$variables" "downloads/$file" "$url" "$sum"
    done <<< "$FILES"
    [ "$wanted" = pets ] || continue
    PYTHONSAFEPATH=1 PYTHONPATH=$(cd "$(dirname "$0")" && pwd) python3 -m datasets.pets \
        downloads/images.tar.gz downloads/annotations.tar.gz p1_data
    rm downloads/images.tar.gz downloads/annotations.tar.gz
done
[[ " $* " != *" checkpoint "* ]] || echo "Evaluate it: python p1_eval.py p1_data/val" \
    "--checkpoint downloads/checkpoint.pt --expect ${CHECKPOINT_EXPECT:-ACCURACY}"
