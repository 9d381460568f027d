# FLOTILLA_STATIC_CLI: the flotilla program fully static too, for machines with an older glibc or none (scripts/dist).
# Included at the end of the top-level file, when the target is there.
if(FLOTILLA_STATIC_CLI AND TARGET flotilla AND NOT FLOTILLA_SANITIZE)
  add_library(flotilla_gssapi_stubs STATIC ${CMAKE_SOURCE_DIR}/cmake/static/gssapi_stubs.c)
  find_library(FLOTILLA_LIBSSH_ARCHIVE libssh.a REQUIRED)
  find_library(FLOTILLA_SQLITE_ARCHIVE libsqlite3.a REQUIRED)
  find_library(FLOTILLA_ZSTD_ARCHIVE libzstd.a REQUIRED)
  flotilla_static(flotilla ${FLOTILLA_LIBSSH_ARCHIVE} flotilla_gssapi_stubs ${FLOTILLA_SQLITE_ARCHIVE} ${FLOTILLA_ZSTD_ARCHIVE})
endif()
