# Shared by the scripts here; sourced, not run.
set -euo pipefail
export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scripts=$root/scripts
venv=$root/.venv
venv_amuse=$root/.venv-amuse
# Scripts that call each other share one clock.
export FLOTILLA_SCRIPT_BEGAN=${FLOTILLA_SCRIPT_BEGAN:-$EPOCHSECONDS}
# Two checkouts share what the compiler cache has.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

# say TEXT: one line of progress, with the seconds since the start.
say() { printf '\n== [%4ds] %s\n' "$((EPOCHSECONDS - FLOTILLA_SCRIPT_BEGAN))" "$*"; }
note() { printf '   %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# usage FILE: the comment at the top of a script is its help.
usage() { sed -n '2,/^$/{/^#/{s/^# \{0,1\}//;p}}' "$1"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo -- "$@"
  else die "this needs root and there is no sudo: run as root: $*"
  fi
}

# Compilers of gRPC's headers take up to 1.3 GB each; more jobs than memory end in the OOM killer.
build_jobs() {
  local cores memory_gb
  cores=$(nproc)
  memory_gb=$(awk '/^MemAvailable/{print int($2 / 1300000)}' /proc/meminfo)
  [ "$memory_gb" -ge 1 ] || memory_gb=1
  echo $((cores < memory_gb ? cores : memory_gb))
}

# digest PATH...: one hash of the content of files and folders, without what builds leave there.
digest() {
  find "$@" -type f -not -path '*/node_modules/*' -not -path '*/dist/*' -not -path '*/__pycache__/*' -not -name '*_pb2*' \
    -print0 2>/dev/null | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

# stamped NAME DIGEST: true when the step NAME was last done for that DIGEST.
stamp_dir=$root/build/stamps
stamped() { [ -e "$stamp_dir/$1" ] && [ "$(cat "$stamp_dir/$1")" = "$2" ]; }
stamp() { mkdir -p "$stamp_dir"; printf '%s\n' "$2" > "$stamp_dir/$1"; }

# make_debian_11: the root of an older distribution (glibc 2.31) at $debian_11, once for all checkouts; needs root and debootstrap.
debian_11=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flotilla/debian-11
make_debian_11() {
  local mirror log=$root/build/debootstrap.log
  [ ! -e "$debian_11/.ready" ] || return 0
  say "Debian 11 with debootstrap, into $debian_11"
  # The machine's own mirror, whatever it is.
  mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || true)
  mkdir -p "$(dirname "$debian_11")" "$root/build"
  # shellcheck disable=SC2086  # empty or one word
  debootstrap --variant=minbase bullseye "$debian_11.$$" $mirror > "$log" 2>&1 || {
    tail -n 5 "$log"
    note "debootstrap failed"
    rm -rf "$debian_11.$$"
    return 1
  }
  touch "$debian_11.$$/.ready"
  # Another checkout may have been faster.
  if [ -e "$debian_11/.ready" ]; then rm -rf "$debian_11.$$"; else rm -rf "$debian_11"; mv "$debian_11.$$" "$debian_11"; fi
}
