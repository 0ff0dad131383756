# shellcheck shell=bash
# What the scripts of this folder share. To be sourced.

# shellcheck disable=SC2034
me=$(basename "$0")
# Where Debian has ip, nft and depmod, which an ordinary user's path leaves out.
PATH=$PATH:/usr/sbin:/sbin

# Something failed: one sentence, exit code 1.
die() { echo "$me: $*" >&2; exit 1; }
# Something that was asked for cannot be: one sentence, exit code 2.
refuse() { echo "$me: $*" >&2; exit 2; }
say() { echo "$me: $*"; }
# The comment at the top of a script is what it says of itself.
help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }
# The value of an option, which has to be there.
value() { [[ $# -ge 2 ]] || refuse "$1 needs a value; $me --help tells more"; echo "$2"; }
number() { [[ $2 =~ ^[0-9]{1,9}$ ]] || refuse "$1 $2 is not a number"; }
need_root() { [[ $EUID -eq 0 ]] || refuse "this needs root: it makes namespaces, bridges and processes of other users"; }

# Commands that have to be there, each with the Debian package that has it: `qemu-img=qemu-utils`.
need() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [[ ${#missing[@]} -eq 0 ]] || refuse "missing packages: apt-get install $(printf '%s\n' "${missing[@]}" | sort -u | xargs)"
}

# A network device's name has room for fifteen letters, and ours end in up to seven of our own.
check_name() { [[ $1 =~ ^[a-z][a-z0-9]{0,7}$ ]] || refuse "--name $1 has to be one to eight small letters and digits"; }

# The MAC address of a guest's network device: one that belongs to no maker.
mac_of() { printf '02:d1:fa:70:%02x:%02x' $(($1 / 256)) $(($1 % 256)); }

# Packs the folder $1 as an archive for the kernel, the same bytes for the same contents.
pack() {
    find "$1" -exec touch --no-dereference --date=@0 {} +
    (cd "$1" && find . -mindepth 1 -printf '%P\0' | LC_ALL=C sort -z |
        cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) | gzip -n -9
}

# Builds the program $1 without libraries to load, the same bytes in whatever folder, and prints where
# it is. $root is the sources' folder.
build_static() {
    local folder=${CARGO_TARGET_DIR:-$root/target}
    command -v cargo >/dev/null || refuse "there is no cargo here: install Rust (see README.md), or build where it is"
    # shellcheck source=static.sh
    . "$root/vm/static.sh"
    # All packages are named, so that what several programs share is built once.
    (cd "$root" && cargo build --release --locked --quiet --workspace --bin "$1" --target "$static_target" --target-dir "$folder") >&2
    echo "$folder/$static_target/release/$1"
}
