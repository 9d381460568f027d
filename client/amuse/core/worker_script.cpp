#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {
namespace {

// Arguments: how the code is found ("amuse" = a path below AMUSE's root directory, "folder" = a file of this job), the code, the
// Python that runs it or nothing, the program's own port, host and flag. Variables: FLOTILLA_AMUSE_DIR, from the resource; FLOTILLA_AMUSE_HERE, the root on the
// script's machine, tried last (a shared file system).
constexpr char search[] = R"sh(#!/bin/sh
how=$1 code=$2 interpreter=$3
shift 3
if [ "${FLOTILLA_AMUSE_DIR:-}" = bundle ]; then
  FLOTILLA_AMUSE_DIR=
  if [ "$how" = amuse ]; then how=bundle; fi
fi
# The package may be that folder, or lie in it.
take() {
  for below in "$1" "$1/amuse" "$1/src/amuse"; do
    if [ -d "$below/community" ]; then home=$below; return 0; fi
  done
  return 1
}
python=
for each in python3 python; do
  if command -v $each > /dev/null 2>&1; then python=$each; break; fi
done
home=
case ${FLOTILLA_AMUSE_DIR:-} in
  '') ;;
  /*) home=$FLOTILLA_AMUSE_DIR ;;
  '~') home=$HOME ;;
  '~/'*) home=$HOME/${FLOTILLA_AMUSE_DIR#??} ;;
  *) home=$HOME/$FLOTILLA_AMUSE_DIR ;;
esac
if [ "$how" = bundle ]; then :
elif [ -n "$home" ]; then
  if [ ! -d "$home" ]; then
    echo "amuse_dir of this resource does not exist on $(uname -n): $home" >&2
    exit 67
  fi
  take "$home"
else
  for each in "${AMUSE_DIR:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/lib/python*/site-packages}" "${CONDA_PREFIX:+$CONDA_PREFIX/lib/python*/site-packages}"; do
    [ -n "$each" ] || continue
    for folder in $each; do
      if take "$folder"; then break 2; fi
    done
  done
  if [ -z "$home" ] && [ -n "$python" ]; then
    home=$($python -c 'import importlib.util as u, os
s = u.find_spec("amuse")
print(list(s.submodule_search_locations)[0] if s and s.submodule_search_locations else "")' 2> /dev/null)
  fi
  if [ -z "$home" ] && [ -n "${FLOTILLA_AMUSE_HERE:-}" ]; then take "$FLOTILLA_AMUSE_HERE"; fi
  if [ -z "$home" ] && [ "$how" = amuse ]; then
    case $code in
      /*) ;;
      *)
        echo "AMUSE was not found on $(uname -n): neither AMUSE_DIR, a virtual or conda environment, nor python3 knows of it." >&2
        echo "Set amuse_dir of the resource." >&2
        exit 67 ;;
    esac
  fi
fi
)sh";

// A code that came with all that it needs; variables: FLOTILLA_AMUSE_BUNDLE_*. The C library's own loader comes along, so that the
// machine's may be older. Open MPI in one process needs none of its daemons.
constexpr char becoming_the_bundle[] = R"sh(
if [ "$how" = bundle ]; then
  here=$(pwd)
  cannot() {
    echo "$1" >&2
    exit 67
  }
  if [ -n "${FLOTILLA_AMUSE_BUNDLE_TROUBLE:-}" ]; then cannot "$FLOTILLA_AMUSE_BUNDLE_TROUBLE"; fi
  machine=$(uname -m)
  if [ "$machine" != "$FLOTILLA_AMUSE_BUNDLE_MACHINE" ]; then
    cannot "a bundle of codes for $FLOTILLA_AMUSE_BUNDLE_MACHINE does not run on $(uname -n), which is $machine: install AMUSE there and set amuse_dir"
  fi
  if [ "${FLOTILLA_AMUSE_PROCESSES:-1}" != 1 ]; then
    cannot "a bundle runs codes in one process: for number_of_workers=$FLOTILLA_AMUSE_PROCESSES install AMUSE on $(uname -n), with the MPI there, and set amuse_dir"
  fi
  export AMUSE_DIR="$here/bundle/amuse"
  echo "flotilla-amuse-home: $AMUSE_DIR" >&2
  flag=false
  if [ -n "${FLOTILLA_AMUSE_BUNDLE_MPI:-}" ]; then
    flag=true
    export OMPI_MCA_mca_base_component_path="$here/bundle/mpi" OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_hwloc_base_binding_policy=none
    export OPAL_PREFIX="$here/bundle"
    if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  fi
  path=$AMUSE_DIR/$FLOTILLA_AMUSE_BUNDLE_CODE
  if [ -z "${FLOTILLA_AMUSE_BUNDLE_LOADER:-}" ]; then exec "$path" "$1" "$2" "$flag"; fi
  exec "$here/bundle/lib/$FLOTILLA_AMUSE_BUNDLE_LOADER" --library-path "$here/bundle/lib" "$path" "$1" "$2" "$flag"
fi
)sh";

constexpr char becoming_the_code[] = R"sh(
if [ "${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-0}}}" = 0 ]; then echo "flotilla-amuse-home: $home" >&2; fi
case $how:$code in
  folder:*) path=./$code ;;
  amuse:/*) path=$code ;;
  *)
    # Relative to the package, or to the root of its sources.
    path=$home/$code
    for up in .. ../..; do
      if [ ! -e "$path" ] && [ -e "$home/$up/$code" ]; then path=$home/$up/$code; fi
    done ;;
esac
if [ ! -e "$path" ]; then
  echo "there is no $code below $home on $(uname -n): is this code of AMUSE built there?" >&2
  exit 67
fi
export AMUSE_DIR="$home"
run=
if [ "$how" = folder ] || [ ! -x "$path" ]; then
  # Its first line names the Python of the machine that it was made on.
  case $(head -c 2 "$path" 2> /dev/null) in '#!') run=${python:-python3} ;; esac
fi
if [ -n "$interpreter" ]; then run=$interpreter; fi
# One process needs no mpiexec, which takes two seconds to notice a death: MPI starts in it by itself. 'true' is for codes that
# were linked with MPI, which do not run without having started it.
if [ "${FLOTILLA_AMUSE_PROCESSES:-1}" = 1 ] && [ -z "$run" ] && ldd "$path" 2> /dev/null | grep -q 'libmpi'; then
  export OMPI_MCA_hwloc_base_binding_policy=none
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  exec "$path" "$1" "$2" true
fi
exec ${run:+"$run"} "$path" "$@"
)sh";

// One line for each thing, words apart by tabs. `find` goes through links: packages of codes may be such.
constexpr char telling[] = R"sh(
tab=$(printf '\t')
say() { printf '%s' "$1"; shift; printf '\t%s' "$@"; printf '\n'; }
say host "$(uname -n)"
say home "$home"
say version "$(grep -E '^(__version__|version) *=' "$home/_version.py" 2> /dev/null | head -n 1)"
if [ -n "$python" ]; then say python "$(command -v "$python")"; fi
if mpiexec=$(command -v mpiexec 2> /dev/null); then
  say mpiexec "$mpiexec" "$(readlink -f "$mpiexec")" "$(mpiexec --version 2>&1 < /dev/null | head -n 2 | tr '\n\t' '  ')"
fi
seen=
find -L "$home/community" "$home/_workers" "$home"/../amuse_* -maxdepth 3 -type f \
  '(' '(' '(' -name '*_worker' -o -name '*_worker_*' ')' ! -name '*.*' ')' -o -name '*worker.py' ')' 2> /dev/null | sort -u |
while IFS= read -r path; do
  case ${path##*/} in distributed_worker*) continue ;; esac
  kind=program
  case $(head -c 2 "$path" 2> /dev/null | tr -d '\0') in
    '#!') kind=script ;;
    *) case $path in *.py) continue ;; esac ;;
  esac
  say code "$path" $kind
  [ $kind = program ] || continue
  ldd "$path" 2> /dev/null | sed -nE 's/^[[:space:]]*([^ ]*) => (not found|[^ ]*).*/\1'"$tab"'\2/p' |
    grep -E 'not found|^libmpi(ch)?\.so' | sort -u | sed "s/^/needs$tab/"
done | while IFS= read -r line; do
  printf '%s\n' "$line"
  case $line in needs*"not found"*) continue ;; needs*) library=${line##*"$tab"} ;; *) continue ;; esac
  case " $seen " in *" $library "*) continue ;; esac
  seen="$seen $library"
  # MPI's own word for what it is; may be asked before it is started.
  say library "$library" "$(readlink -f "$library")" "$("${python:-python3}" -c 'import ctypes, sys
text, size = ctypes.create_string_buffer(8192), ctypes.c_int()
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL).MPI_Get_library_version(text, ctypes.byref(size))
print(text.value.decode(errors="replace"))' "$library" 2> /dev/null | head -n 2 | tr '\n\t' '  ')"
done
say end
)sh";

}  // namespace

std::string worker_script() { return std::string(search) + becoming_the_bundle + becoming_the_code; }
std::string probe_script() { return std::string(search) + telling; }

}  // namespace flotilla::amuse
