# What concerns the two finished programs; included when all targets are there.

# FLOTILLA_PROGRAM_DIR: both in one folder (`flotilla` looks for `flotilla-agent` beside itself).
if(FLOTILLA_PROGRAM_DIR)
  foreach(program flotilla flotilla-agent)
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${FLOTILLA_PROGRAM_DIR})
  endforeach()
  # What travels to other machines carries no symbols: a third of the size.
  if(NOT FLOTILLA_SANITIZE)
    target_link_options(flotilla-agent PRIVATE -s)
  endif()
endif()

# FLOTILLA_STATIC_CLI: the flotilla program fully static too, for machines with an older glibc or none (scripts/dist).
if(FLOTILLA_STATIC_CLI AND NOT FLOTILLA_SANITIZE)
  add_library(flotilla_gssapi_stubs STATIC ${CMAKE_SOURCE_DIR}/cmake/static/gssapi_stubs.c)
  find_library(FLOTILLA_LIBSSH_ARCHIVE libssh.a REQUIRED)
  find_library(FLOTILLA_SQLITE_ARCHIVE libsqlite3.a REQUIRED)
  find_library(FLOTILLA_ZSTD_ARCHIVE libzstd.a REQUIRED)
  target_link_libraries(flotilla PRIVATE ${FLOTILLA_LIBSSH_ARCHIVE} flotilla_gssapi_stubs ${FLOTILLA_SQLITE_ARCHIVE}
                        ${FLOTILLA_ZSTD_ARCHIVE} ${FLOTILLA_STATIC_LIBS})
endif()

# Otherwise it takes from this machine what has to fit it (libssh, OpenSSL, SQLite, the C library) and brings the rest.
if(NOT FLOTILLA_STATIC_CLI AND NOT FLOTILLA_SANITIZE)
  flotilla_lean(flotilla ssh sqlite3 zstd ssl crypto z)
endif()
