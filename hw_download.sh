#!/usr/bin/env bash
# Fetch what the real runs need. Each part by itself, or all that it takes to train and to caption:
#
#     bash hw_download.sh                    # pets vit-base catr vocab
#     bash hw_download.sh pets vit-tiny
#     bash hw_download.sh checkpoint         # a trained one, for a grader: fill in its three lines below
#
#     pets          Oxford-IIIT Pet: p1_data/{train,val}/{class}_{id}.jpg, p1_data/classes.txt, p1_data/masks
#     vit-tiny, vit-small, vit-base    timm's pretrained weights, to downloads/NAME.safetensors, for --weights
#     catr, catr-v1, catr-v2           CATR's weights, to downloads/catr.pth (v3), downloads/catr-v1.pth, ...
#     vocab         the vocabulary of bert-base-uncased, to downloads/vocab.txt
#     checkpoint    to downloads/checkpoint.pt
#
# Needs curl and python3; proxies are curl's. The same command goes on with an interrupted download, and
# fetches nothing twice. Each file is compared with the checksum given here or, if there is none, with the one
# that downloads/checksums.txt noted at the first download. Variables replace what is given here: VIT_TINY_URL
# (a mirror, or a file:// URL), VIT_TINY_SHA256, ... Exit code: 0, or 2 for what went wrong.
set -euo pipefail
export LC_ALL=C

# A trained checkpoint: where it is, its SHA-256, and the accuracy that p1_eval.py should find.
CHECKPOINT_URL=${CHECKPOINT_URL:-}
CHECKPOINT_SHA256=${CHECKPOINT_SHA256:-}
CHECKPOINT_EXPECT=${CHECKPOINT_EXPECT:-}

PETS=https://www.robots.ox.ac.uk/~vgg/data/pets/data
HUB=https://huggingface.co
TIMM=in21k_ft_in1k/resolve/main/model.safetensors
CATR=https://github.com/saahiluppal/catr/releases/download
VOCAB=07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
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

size() { if [ -f "$1" ]; then echo $(($(wc -c < "$1"))); else echo 0; fi; }

is_web_page() { [ -f "$1" ] && head -c 1000 "$1" | grep -aqiE '^[^a-z]*<(!doctype|html|head|\?xml)'; }

verify() {  # FILE COPY SUM: compare the copy of a file with SUM or the noted one; `wrong` says how it differs
    local kind=sha256 sum=$3 whence='as pinned' actual
    if [ -z "$sum" ] && [ -f downloads/checksums.txt ]; then
        sum=$(awk -v file="$1" '$2 == file { print $1 }' downloads/checksums.txt)
        whence='as noted in downloads/checksums.txt (remove that line if the new one is right)'
    fi
    [ ${#sum} -ne 32 ] || kind=md5
    actual=$("${kind}sum" < "$2" | cut -d ' ' -f 1)
    if [ -z "$sum" ]; then
        echo "$actual  $1" >> downloads/checksums.txt
        echo "$1: no published checksum; its SHA-256 is noted in downloads/checksums.txt, to be compared"
    fi
    wrong="its $kind is $actual, not $sum, $whence"
    [ "$actual" = "${sum:-$actual}" ]
}

version() {  # HEADERS of responses: size, and ETag or date, of the file that the last one is about
    [ ! -f "$1" ] || tr -d '\r' < "$1" | awk '
        /^HTTP\// { split("", field) }
        { field[tolower($1)] = $0 }
        END { size = field["content-range:" in field ? "content-range:" : "content-length:"]
              sub(/.*[\/ ]/, "", size)
              print size, field["etag:" in field ? "etag:" : "last-modified:"] }'
}

transfer() {  # VARIABLE URL PART: append to the part until it is whole
    local part=$3 have now most headers code answer status type failures=0
    case $2 in file://*) rm -f "$part" ;; esac
    [ -f "$part.headers" ] || rm -f "$part"  # nothing says what it is a part of
    most=$(size "$part")
    while [ "$failures" -lt 3 ]; do  # in a row that bring nothing
        sleep "$failures"
        have=$(size "$part") code=0 headers=$part.headers
        if [ "$have" -gt 0 ]; then
            [ "$(version "$headers" | cut -d ' ' -f 1)" != "$have" ] || return 0
            headers=$part.again
        fi
        # at most half of the free space: archives are unpacked beside themselves
        answer=$(curl --fail --location --globoff --connect-timeout 20 --speed-limit 1 --speed-time 60 \
            --continue-at - --max-filesize "$(df -Pk . | awk 'NR == 2 { printf "%.0f", $4 * 512 }')" \
            --output "$part" --dump-header "$headers" --write-out '%{http_code} %{content_type}' \
            "$([ -t 2 ] && echo --progress-bar || echo --silent)" "${2// /%20}") || code=$?
        read -r status type <<< "$answer"
        [ -s "$part" ] || rm -f "$part"*
        if [[ $status = 200 && $type = text/html* ]] || { [ "$have" = 0 ] && is_web_page "$part"; }; then
            [ "$have" -gt 0 ] || rm -f "$part"*
            fail "$2 answered with a web page, not a file: log in, or set $1 to a mirror"
        fi
        case $code:$status in
            23:*) fail "no space is left for ${part%.part}: make room, and run this again to go on" ;;
            63:*) fail "${part%.part} takes over half of the free space: make room, or fetch fewer parts" ;;
            37:*) fail "$2: not found: set $1 to a mirror" ;;
            *:404 | *:410) fail "$2: not found (HTTP $status): set $1 to a mirror" ;;
            *:401 | *:403) fail "$2: not allowed (HTTP $status): log in, or set $1 to a mirror" ;;
            33:* | *:416) rm -f "$part" ;;  # no way to go on in the middle of a file
            *:206) [ "$(version "$part.again")" = "$(version "$part.headers")" ] || rm -f "$part" ;;
        esac
        now=$(size "$part")
        if [ "$code" = 0 ] && [ "$now" -gt 0 ]; then return; fi
        if [ "$now" -gt "$most" ]; then most=$now failures=0; else failures=$((failures + 1)); fi
    done
    [ "$status" != 000 ] || fail "$2 does not answer (curl: $code): check the network, or set $1 to a mirror"
    fail "$2: the transfer stopped after $now bytes (HTTP $status): run this again to go on"
}

get() {  # VARIABLES FILE URL SUM: put the file in place, whole and checked
    local url=$1_URL md5=$1_MD5 sha256=$1_SHA256 sum part=$2.part
    sum=${!sha256:-${!md5:-$4}}
    if [ -e "$2" ]; then
        ! is_web_page "$2" || fail "$2 is a web page, not a file: remove it, and run this again"
        verify "$2" "$2" "$sum" || fail "$2: $wrong: remove it, and run this again"
        echo "$2 is there"
        return
    fi
    transfer "$url" "${!url:-$3}" "$part"
    verify "$2" "$part" "$sum" || { rm -f "$part"*; fail "${!url:-$3}: $wrong: the download was removed"; }
    mv "$part" "$2"
    rm -f "$part"*
    echo "$2: fetched, $(ls -lh "$2" | awk '{ print $5 }')"
}

case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;; esac
[ $# -gt 0 ] || set -- pets vit-base catr vocab ${CHECKPOINT_URL:+checkpoint}
parts=$(cut -d ' ' -f 1 <<< "$FILES" | uniq)
for wanted in "$@"; do
    grep -qxF -e "$wanted" <<< "$parts" || fail "$wanted is no part: choose among ${parts//$'\n'/ }"
    if [ "$wanted" = checkpoint ] && { [ -z "$CHECKPOINT_URL" ] || [ -z "$CHECKPOINT_SHA256" ]; }; then
        fail "checkpoint: set CHECKPOINT_URL and CHECKPOINT_SHA256, in the environment or in hw_download.sh"
    fi
done
for tool in curl python3 sha256sum; do command -v $tool > /dev/null || fail "$tool is not installed: install it"; done
mkdir -p downloads
for wanted in "$@"; do
    if [ "$wanted" = pets ] && [ -e p1_data ]; then echo "p1_data is there"; continue; fi
    while read -r part variables file url sum; do
        [ "$part" != "$wanted" ] || get "$variables" "downloads/$file" "$url" "$sum"
    done <<< "$FILES"
    if [ "$wanted" = pets ]; then
        PYTHONSAFEPATH=1 PYTHONPATH=$(cd "$(dirname "$0")" && pwd) python3 -m datasets.pets \
            downloads/images.tar.gz downloads/annotations.tar.gz p1_data
        rm downloads/images.tar.gz downloads/annotations.tar.gz
    elif [ "$wanted" = checkpoint ]; then
        echo "Evaluate it: python p1_eval.py p1_data/val --checkpoint downloads/checkpoint.pt" \
            "--expect ${CHECKPOINT_EXPECT:-ACCURACY}"
    fi
done
