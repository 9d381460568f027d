#include "client/amuse/core/worker_request.hpp"

namespace flotilla::amuse {

// Arguments: how the code is found ("amuse" = a path below AMUSE's root directory, "folder" = a file of this job), the code, the
// Python that runs it or nothing, the program's own port, host and flag. Variables: FLOTILLA_AMUSE_DIR, from the resource; FLOTILLA_AMUSE_HERE, the root on the
// script's machine, tried last (a shared file system).
const char worker_script[] = R"sh(#!/bin/sh
how=$1 code=$2 interpreter=$3
shift 3
# The package may be that folder, or lie in it, as sources or in the environment that it is installed in.
take() {
  for below in "$1" "$1/amuse" "$1/src/amuse" "$1"/lib/python*/site-packages/amuse; do
    if [ -d "$below/community" ]; then home=$below; return 0; fi
  done
  return 1
}
refuse() {
  printf '%s\n' "$@" >&2
  exit 67
}
# A file of this job, or of a whole path, is found without AMUSE.
needed=yes
case $how:$code in folder:* | amuse:/*) needed= ;; esac
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
  what='Set it to the folder of the package amuse, to the environment that it is installed in or to its sources, or leave it empty: then it is looked for.'
  [ -d "$home" ] || refuse "amuse_dir of this resource does not exist on $(uname -n): $home" "$what"
  take "$home" || [ -z "$needed" ] || refuse "there is no AMUSE in amuse_dir of this resource on $(uname -n): $home" "$what"
else
  for each in "${AMUSE_DIR:-}" "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ -n "$each" ] && take "$each"; then break; fi
  done
  if [ -z "$home" ] && [ -n "$python" ]; then
    home=$($python -c 'import importlib.util as u, os
s = u.find_spec("amuse")
print(list(s.submodule_search_locations)[0] if s and s.submodule_search_locations else "")' 2> /dev/null)
  fi
  if [ -z "$home" ] && [ -n "${FLOTILLA_AMUSE_HERE:-}" ]; then take "$FLOTILLA_AMUSE_HERE"; fi
  [ -n "$home" ] || [ -z "$needed" ] ||
    refuse "AMUSE was not found on $(uname -n): neither AMUSE_DIR, a virtual or conda environment, nor python3 knows of it." \
      "Set amuse_dir of the resource."
fi
# The Python of the environment that AMUSE is installed in knows AMUSE; another may not.
case $home in
  */lib/python*/site-packages/amuse)
    own=${home%/lib/python*/site-packages/amuse}/bin/python3
    if [ -x "$own" ]; then python=$own; fi ;;
esac
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
[ -e "$path" ] || refuse "there is no $code below $home on $(uname -n): is this code of AMUSE built there?"
export AMUSE_DIR="$home"
run=
case $(head -c 200 "$path" 2> /dev/null | tr -d '\000' | head -n 1) in
  '#!'*/env\ python*) run=${python:-python3} ;;
  # It names the Python of the machine that it was made on.
  '#!'*) if [ "$how" = folder ] || [ ! -x "$path" ]; then run=${python:-python3}; fi ;;
esac
if [ -n "$interpreter" ]; then run=$interpreter; fi
# What Open MPI keeps in files: in /tmp it would stay when a worker is killed. Codes in Python start MPI too, by mpi4py.
if [ "${FLOTILLA_AMUSE_PROCESSES:-1}" = 1 ]; then export OMPI_MCA_orte_tmpdir_base="$PWD"; fi
# One process needs no mpiexec, which takes two seconds to notice a death: MPI starts in it by itself. 'true' is for codes that
# were linked with MPI, which do not run without having started it.
if [ "${FLOTILLA_AMUSE_PROCESSES:-1}" = 1 ] && [ -z "$run" ] && ldd "$path" 2> /dev/null | grep -q 'libmpi'; then
  # Open MPI's helper beside it, and the networks, are for processes that talk to others: starting without takes a seventh of the time.
  export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_ess_singleton_isolated=1
  export OMPI_MCA_pml="${OMPI_MCA_pml:-ob1}" OMPI_MCA_btl="${OMPI_MCA_btl:-self}"
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  exec "$path" "$1" "$2" true
fi
exec ${run:+"$run"} "$path" "$@"
)sh";

}  // namespace flotilla::amuse
