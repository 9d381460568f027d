# cmake --install: the programs, their agent, tab completion and documentation (component `programs`), and the C++ client
# library with its CMake package (components `client` and `worker`, see client/CMakeLists.txt).
include(GNUInstallDirs)
install(TARGETS flotilla RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT programs)
# Nobody types its name: `flotilla` finds it by its own place.
install(TARGETS flotilla-agent RUNTIME DESTINATION libexec/flotilla COMPONENT programs)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE ${CMAKE_SOURCE_DIR}/README.md ${CMAKE_SOURCE_DIR}/CHANGELOG.md
        DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT programs)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/docs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT programs)

# The program itself writes them, while it is installed.
install(CODE "
  foreach(place bash:bash-completion/completions/flotilla zsh:zsh/site-functions/_flotilla fish:fish/vendor_completions.d/flotilla.fish)
    string(REGEX MATCH \"^([a-z]+):(.*)$\" all \${place})
    set(shell \${CMAKE_MATCH_1})
    set(file \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}/\${CMAKE_MATCH_2}\")
    message(STATUS \"Installing: \$ENV{DESTDIR}\${file}\")
    execute_process(COMMAND \"$<TARGET_FILE:flotilla>\" completion \${shell} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
    file(WRITE \"\$ENV{DESTDIR}\${file}\" \"\${text}\")
  endforeach()" COMPONENT programs)
