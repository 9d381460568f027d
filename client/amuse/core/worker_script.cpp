#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {

// Arguments: how the code is found ("amuse" = a path below AMUSE's root directory, "folder" = a file of this job), the code, the
// Python that runs it or nothing, the program's own port, host and flag. Variables: FLOTILLA_AMUSE_DIR, from the resource; FLOTILLA_AMUSE_HERE, the root on the
// script's machine, tried last (a shared file system).
const char worker_script[] = R"sh(#!/bin/sh
how=$1 code=$2 interpreter=$3
shift 3
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
if [ -n "$home" ]; then
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

}  // namespace flotilla::amuse
