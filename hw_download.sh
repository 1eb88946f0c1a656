#!/usr/bin/env bash
# Fetch what the real runs need. Each part by itself, or all that it takes to train and to caption:
#
#     bash hw_download.sh                    # pets vit-base catr vocab
#     bash hw_download.sh pets vit-tiny
#     bash hw_download.sh checkpoint         # a trained one, for a grader: fill in its three lines below
#
#     pets          Oxford-IIIT Pet as p1_data/{train,val}/{class}_{id}.jpg, p1_data/classes.txt, trimaps in p1_data/masks
#     vit-tiny, vit-small, vit-base      timm's pretrained weights, to downloads/NAME.safetensors, for --weights
#     catr, catr-v1, catr-v2             CATR's weights, to downloads/catr.pth (the last, v3), downloads/catr-v1.pth, ...
#     vocab         the vocabulary of bert-base-uncased, to downloads/vocab.txt
#     checkpoint    to downloads/checkpoint.pt
#
# Needs curl or wget, and tar. A download that was interrupted goes on where it stopped, with the same command; what is
# there is not fetched again. Each file is compared with the checksum given here; where none is known, with the one that
# downloads/checksums.txt noted at the first download. An environment variable of its name replaces any URL or checksum
# below, as with a mirror or a file:// URL; proxies are those of curl and wget. Exit code: 0, or 2 for what went wrong.
set -euo pipefail
export LC_ALL=C
case " $* " in
    *" -h "* | *" --help "*)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"
        exit ;;
esac

# A trained checkpoint: where it is, its SHA-256, and the accuracy that p1_eval.py should find.
CHECKPOINT_URL=${CHECKPOINT_URL:-}
CHECKPOINT_SHA256=${CHECKPOINT_SHA256:-}
CHECKPOINT_EXPECT=${CHECKPOINT_EXPECT:-}

PETS=https://www.robots.ox.ac.uk/~vgg/data/pets/data
HUB=https://huggingface.co
CATR=https://github.com/saahiluppal/catr/releases/download
PETS_IMAGES_URL=${PETS_IMAGES_URL:-$PETS/images.tar.gz}
PETS_IMAGES_MD5=${PETS_IMAGES_MD5:-5c4f3ee8e5d25df40f4fd59a7f44e54c}
PETS_ANNOTATIONS_URL=${PETS_ANNOTATIONS_URL:-$PETS/annotations.tar.gz}
PETS_ANNOTATIONS_MD5=${PETS_ANNOTATIONS_MD5:-95a8c909bbe2e81eed6a22bccdf3f68f}
VIT_TINY_URL=${VIT_TINY_URL:-$HUB/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors}
VIT_SMALL_URL=${VIT_SMALL_URL:-$HUB/timm/vit_small_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors}
VIT_BASE_URL=${VIT_BASE_URL:-$HUB/timm/vit_base_patch16_224.augreg2_in21k_ft_in1k/resolve/main/model.safetensors}
CATR_V1_URL=${CATR_V1_URL:-$CATR/0.1/weights_9348032.pth}
CATR_V2_URL=${CATR_V2_URL:-$CATR/0.2/weight389123791.pth}
CATR_URL=${CATR_URL:-$CATR/0.2/weight493084032.pth}
VOCAB_URL=${VOCAB_URL:-$HUB/bert-base-uncased/resolve/main/vocab.txt}
VOCAB_SHA256=${VOCAB_SHA256:-07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3}

PARTS="pets vit-tiny vit-small vit-base catr catr-v1 catr-v2 vocab checkpoint"
UNPACKED=2  # times the size of an archive that it takes, itself included
TRIES=3  # in a row that bring nothing

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Files and checksums -------------------------------------------------------------------------------------------------

size_of() {  # FILE: its bytes, 0 without one
    if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi
}

checksum() {  # sha256|md5 FILE
    if command -v "$1sum" > /dev/null; then
        "$1sum" < "$2" | cut -d ' ' -f 1
    elif [ "$1" = md5 ]; then
        md5 -q "$2"
    else
        shasum -a 256 < "$2" | cut -d ' ' -f 1
    fi
}

noted() {  # FILE: the SHA-256 that was noted for it, if any
    [ ! -f downloads/checksums.txt ] || awk -v file="$1" '$2 == file { print $1 }' downloads/checksums.txt
}

verify() {  # FILE KIND SUM COPY: compare the copy of a file, with what was noted where no checksum is given
    local kind=$2 wanted=$3 found whence='as pinned in hw_download.sh'
    if [ -z "$wanted" ]; then
        kind=sha256 wanted=$(noted "$1") whence="as noted in downloads/checksums.txt at its first download"
    fi
    found=$(checksum "$kind" "$4")
    if [ -z "$wanted" ]; then
        printf '%s  %s\n' "$found" "$1" >> downloads/checksums.txt
        echo "$1: no checksum of it is known; its SHA-256 is noted in downloads/checksums.txt and compared from now on"
    elif [ "$found" != "$wanted" ]; then
        wrong="its ${kind} is $found, not $wanted, $whence"
        return 1
    fi
}

human() {  # BYTES
    awk -v bytes="$1" 'BEGIN { if (bytes < 1e6) print int(bytes / 1e3 + 0.999) " kB"
                               else if (bytes < 1e9) printf "%.0f MB\n", bytes / 1e6
                               else printf "%.1f GB\n", bytes / 1e9 }'
}

# The network ---------------------------------------------------------------------------------------------------------

if command -v curl > /dev/null; then
    tool=curl
elif command -v wget > /dev/null; then
    tool=wget
else
    fail "neither curl nor wget is installed: install one of them"
fi

last_answer() {  # headers of one or more answers, redirections before the last: its status, size and version
    tr -d '\r' | awk '
        { sub(/^ +/, "") }
        /^HTTP\// { status = $2; size = version = "" }
        tolower($1) == "content-length:" { size = $2 }
        tolower($1) == "etag:" || tolower($1) == "last-modified:" { version = version $0 }
        END { gsub(/[ \t]/, "", version); print status + 0, size == "" ? "?" : size, version == "" ? "?" : version }'
}

local_path() {  # file:// URL: the path, its %20 and the like decoded
    local path=${1#file://}
    printf '%b' "${path//%/\\x}"
}

look_at() {  # URL: "STATUS SIZE VERSION" of the file there; a status of 0 if nothing answers, a size of ? if it is not told
    case $1 in
        file://*)
            local path
            path=$(local_path "$1")
            if [ -f "$path" ]; then echo "200 $(size_of "$path") ?"; else echo "404 ? ?"; fi ;;
        *)
            if [ "$tool" = curl ]; then
                curl --silent --head --location --connect-timeout 20 --max-time 60 "$1" | last_answer
            else
                wget --spider --server-response --no-verbose --tries 1 --timeout 20 "$1" 2>&1 | last_answer
            fi ;;
    esac || true
}

transfer() {  # URL PART: append what is missing; the status of the answer is left in `status`
    local headers ok=0
    case $1 in
        file://*) cp "$(local_path "$1")" "$2" && status=200 && return || return 1 ;;
    esac
    headers=$2.headers
    if [ "$tool" = curl ]; then
        curl --fail --location --continue-at - --connect-timeout 20 --speed-limit 1 --speed-time 60 --dump-header "$headers" \
            --output "$2" $([ -t 2 ] && echo --progress-bar || echo --silent) "$1" || ok=$?
    else
        wget --continue --tries 1 --timeout 60 --server-response --no-verbose --output-document "$2" "$1" 2> "$headers" || ok=$?
    fi
    read -r status _ < <(last_answer < "$headers")
    rm -f "$headers"
    return "$ok"
}

# Plan: what is missing, and whether there is room for it ---------------------------------------------------------------

urls=() files=() kinds=() sums=() sizes=() versions=()
needed=0

want() {  # VARIABLE FILE KIND SUM [TIMES]: plan to fetch the file of the URL in VARIABLE; it takes TIMES its size
    local url=${!1} status size version have
    if [ -e "$2" ]; then
        verify "$2" "$3" "$4" "$2" || fail "$2: $wrong: remove it, and run this again"
        echo "$2 is there"
        return
    fi
    read -r status size version < <(look_at "$url")
    case $status in
        200 | 403 | 405 | 501) ;;  # some servers answer a question for the headers alone with one of the latter three
        0) fail "$url does not answer: see to the network or the proxy, or set $1 to a mirror" ;;
        *) fail "$url is not to be had (HTTP status $status): set $1 to a mirror" ;;
    esac
    [ "$status" = 200 ] || size='?'
    have=$(size_of "$2.part")
    urls+=("$url") files+=("$2") kinds+=("$3") sums+=("$4") sizes+=("$size") versions+=("$version")
    [ "$size" = '?' ] || needed=$((needed + size * ${5:-1} - have))
}

plan() {  # PART
    case $1 in
        pets)
            if [ -e p1_data ]; then
                echo "p1_data is there"
            else
                want PETS_IMAGES_URL downloads/images.tar.gz md5 "$PETS_IMAGES_MD5" "$UNPACKED"
                want PETS_ANNOTATIONS_URL downloads/annotations.tar.gz md5 "$PETS_ANNOTATIONS_MD5" "$UNPACKED"
            fi ;;
        vit-tiny) want VIT_TINY_URL downloads/vit-tiny.safetensors sha256 '' ;;
        vit-small) want VIT_SMALL_URL downloads/vit-small.safetensors sha256 '' ;;
        vit-base) want VIT_BASE_URL downloads/vit-base.safetensors sha256 '' ;;
        catr) want CATR_URL downloads/catr.pth sha256 '' ;;
        catr-v1) want CATR_V1_URL downloads/catr-v1.pth sha256 '' ;;
        catr-v2) want CATR_V2_URL downloads/catr-v2.pth sha256 '' ;;
        vocab) want VOCAB_URL downloads/vocab.txt sha256 "$VOCAB_SHA256" ;;
        checkpoint)
            if [ -z "$CHECKPOINT_URL" ] || [ -z "$CHECKPOINT_SHA256" ]; then
                fail "checkpoint: set CHECKPOINT_URL and CHECKPOINT_SHA256, in the environment or in hw_download.sh"
            fi
            want CHECKPOINT_URL downloads/checkpoint.pt sha256 "$CHECKPOINT_SHA256" ;;
    esac
}

# Fetch ---------------------------------------------------------------------------------------------------------------

fetch() {  # URL FILE KIND SUM SIZE VERSION: put the file in place
    local url=$1 file=$2 part=$2.part size=$5 version=$6 have now status='' failures=0
    if [ "$(cat "$part.version" 2> /dev/null)" != "$version" ]; then
        rm -f "$part"  # half of another version is of no use
    fi
    printf '%s' "$version" > "$part.version"
    while true; do
        have=$(size_of "$part")
        if [ "$size" != '?' ]; then
            [ "$have" -ne "$size" ] || break
            [ "$have" -le "$size" ] || rm -f "$part"
        fi
        if transfer "$url" "$part" && { [ "$size" = '?' ] || [ "$(size_of "$part")" -eq "$size" ]; }; then
            break
        fi
        now=$(size_of "$part")
        if [ "$have" -gt 0 ] && [ "$now" -le "$have" ] && { [ "$status" = 416 ] || [ "$status" = 200 ]; }; then
            rm -f "$part"  # this server cannot go on in the middle of a file
            have=0 now=0
        fi
        failures=$((now > have ? 0 : failures + 1))
        if [ "$failures" -ge "$TRIES" ]; then
            if [ "$(free_space)" -lt 1000000 ]; then
                fail "no space is left for $file: make room, and run this again to go on"
            fi
            fail "$url: the transfer stopped after $(human "$now")${status:+, HTTP status $status}: run this again to go on"
        fi
        sleep "$failures"
    done
    verify "$file" "$3" "$4" "$part" || { rm -f "$part" "$part.version"; fail "$url: $wrong: it was removed"; }
    mv "$part" "$file"
    rm -f "$part.version"
    echo "$file: fetched, $(human "$(size_of "$file")")"
}

free_space() {  # bytes
    df -Pk . | awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'
}

# Oxford-IIIT Pet in the course's layout --------------------------------------------------------------------------------

unpack() {  # ARCHIVE FOLDER MEMBERS: what is named so and nothing else, so that no member gets outside the folder
    local problem
    problem=$(tar -xzf "$1" -C "$2" "${@:3}" 2>&1) ||
        fail "$1 cannot be unpacked (${problem%%$'\n'*}): remove it, and run this again"
}

arrange_pets() {  # from both archives, into p1_data, at once
    local new=p1_data.part split image class id=0 name
    rm -rf "$new"
    mkdir -p "$new"/{train,val,masks/train,masks/val,lists}
    unpack downloads/annotations.tar.gz "$new" annotations/trainval.txt annotations/test.txt annotations/trimaps
    # the official lists: a name, its class from 1 and more; classes are in alphabetical order, whatever the case
    awk '{ print (FILENAME ~ /trainval/ ? "train" : "val"), $1, $2 - 1 }' \
        "$new"/annotations/trainval.txt "$new"/annotations/test.txt > "$new/lists/images"
    if grep -qvE '^(train|val) [A-Za-z_]+_[0-9]+ [0-9]+$' "$new/lists/images"; then
        fail "downloads/annotations.tar.gz: its lists are not those of Oxford-IIIT Pet"
    fi
    awk '{ print "images/" $2 ".jpg" }' "$new/lists/images" > "$new/lists/members"
    unpack downloads/images.tar.gz "$new" -T "$new/lists/members"
    if [ -n "$(find "$new" ! -type f ! -type d)" ]; then
        fail "the archives of Oxford-IIIT Pet hold links, which they should not: nothing was put in place"
    fi
    while read -r split image class; do
        name=${class}_$id
        mv "$new/images/$image.jpg" "$new/$split/$name.jpg"
        if [ -f "$new/annotations/trimaps/$image.png" ]; then
            mv "$new/annotations/trimaps/$image.png" "$new/masks/$split/$name.png"
        fi
        id=$((id + 1))
    done < "$new/lists/images"
    awk '{ sub(/_[0-9]+$/, "", $2); print $3, $2 }' "$new/lists/images" | sort -n -u | cut -d ' ' -f 2 > "$new/classes.txt"
    rm -rf "$new/images" "$new/annotations" "$new/lists"
    mv "$new" p1_data
    rm -f downloads/images.tar.gz downloads/annotations.tar.gz
    echo "p1_data: $(ls p1_data/train | wc -l) photos in train, $(ls p1_data/val | wc -l) in val," \
        "$(wc -l < p1_data/classes.txt) classes"
}

# ---------------------------------------------------------------------------------------------------------------------

if [ $# -eq 0 ]; then
    set -- pets vit-base catr vocab ${CHECKPOINT_URL:+checkpoint}
fi
for part in "$@"; do
    case " $PARTS " in
        *" $part "*) ;;
        *) fail "$part is no part: choose among $PARTS" ;;
    esac
done
mkdir -p downloads
for part in "$@"; do
    plan "$part"
done
if [ ${#urls[@]} -gt 0 ]; then
    free=$(free_space)
    echo "To do: $(human "$needed") in $PWD, where $(human "$free") are free"
    if [ "$needed" -gt "$free" ]; then
        fail "that is too little space: free some, or fetch fewer parts"
    fi
    for i in "${!urls[@]}"; do
        fetch "${urls[i]}" "${files[i]}" "${kinds[i]}" "${sums[i]}" "${sizes[i]}" "${versions[i]}"
    done
fi
for part in "$@"; do
    if [ "$part" = pets ] && [ ! -e p1_data ]; then
        arrange_pets
    fi
    if [ "$part" = checkpoint ]; then
        echo "Evaluate it: python p1_eval.py p1_data/val --checkpoint downloads/checkpoint.pt" \
            "--expect ${CHECKPOINT_EXPECT:-ACCURACY}"
    fi
done
