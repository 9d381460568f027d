# Compiler settings that all targets share.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_compile_options(-Wall -Wextra -Wno-missing-field-initializers -ffunction-sections -fdata-sections -fno-plt)
add_link_options(-Wl,--gc-sections)
include_directories(${CMAKE_SOURCE_DIR})

if(FLOTILLA_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(FLOTILLA_SANITIZE STREQUAL "thread")
  # Without the macro the headers of protobuf lay objects out as its library does.
  add_compile_options(-fsanitize=thread -U__SANITIZE_THREAD__)
  add_link_options(-fsanitize=thread)
elseif(FLOTILLA_SANITIZE STREQUAL "fuzzer")
  # toml++ calls a point unreachable that letters beyond ASCII outside of quotes reach (they are no blanks there, as they should be).
  add_compile_options(-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize=unreachable -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(spdlog REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(tl-expected REQUIRED)
find_package(Boost 1.81 REQUIRED)
add_compile_definitions(BOOST_ASIO_NO_DEPRECATED SPDLOG_FMT_EXTERNAL)

execute_process(COMMAND git rev-parse --short=12 HEAD WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
                OUTPUT_VARIABLE FLOTILLA_REVISION OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT FLOTILLA_REVISION)
  set(FLOTILLA_REVISION unknown)
endif()
set(FLOTILLA_BUILD "${PROJECT_VERSION}+${FLOTILLA_REVISION}")

# flotilla_text(FILE SOURCE NAME): the content of a text file as a constant `extern const char NAME[]`, in a source below the build folder.
function(flotilla_text file source name)
  file(READ ${file} content)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  string(REGEX REPLACE "::[^:]*$" "" namespace ${name})
  string(REGEX REPLACE "^.*::" "" constant ${name})
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${source} @ONLY NEWLINE_STYLE UNIX CONTENT
       "namespace @namespace@ {\nextern const char @constant@[];\nconst char @constant@[] = R\"~~text~~(@content@)~~text~~\";\n}\n")
endfunction()

# flotilla_library(NAME SOURCES... LINK libs...): a static library of one folder.
function(flotilla_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_LINK})
endfunction()

# The libraries that a program links either shared, or (target property FLOTILLA_STATIC) static.
# Debian's CMake packages name only the shared ones; pkg-config knows what the archives need.
function(flotilla_dependency name shared)
  add_library(${name} INTERFACE)
  target_link_libraries(${name} INTERFACE "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:FLOTILLA_STATIC>>>:${shared}>")
endfunction()
flotilla_dependency(dep_grpc gRPC::grpc++)
flotilla_dependency(dep_protobuf protobuf::libprotobuf)
flotilla_dependency(dep_crypto OpenSSL::Crypto)
flotilla_dependency(dep_ssl OpenSSL::SSL)
flotilla_dependency(dep_sqlite SQLite::SQLite3)
# Debian has no archives of these two: header only.
add_library(dep_spdlog INTERFACE)
target_link_libraries(dep_spdlog INTERFACE spdlog::spdlog_header_only fmt::fmt-header-only)

execute_process(COMMAND ${PKG_CONFIG_EXECUTABLE} --static --libs grpc++ protobuf openssl OUTPUT_VARIABLE static_libs
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(static_libs)
list(REMOVE_ITEM static_libs -pthread)
list(REMOVE_DUPLICATES static_libs)
set(FLOTILLA_STATIC_LIBS -Wl,--start-group ${static_libs} -Wl,--end-group CACHE INTERNAL "")

# gRPC from its archive without xDS: 16.8 -> 14.8 MB for the agent. Other versions of gRPC have other seams there, and keep all.
function(flotilla_without_xds target)
  if(gRPC_VERSION VERSION_GREATER_EQUAL 1.51 AND gRPC_VERSION VERSION_LESS 1.52)
    target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/cmake/static/grpc_without_xds.cpp)
  endif()
endfunction()

# flotilla_static(TARGET extra libs...): fully static, runs on any glibc or none.
function(flotilla_static target)
  set_target_properties(${target} PROPERTIES FLOTILLA_STATIC ON)
  target_link_options(${target} PRIVATE -static -pthread)
  target_link_libraries(${target} PRIVATE ${ARGN} ${FLOTILLA_STATIC_LIBS})
  flotilla_without_xds(${target})
endfunction()

# flotilla_lean(TARGET shared libs...): gRPC, its seventy little libraries and the C++ library from archives, all else shared.
# A program that is typed spends more time in the dynamic linker than in its work otherwise.
set(lean_libs ${static_libs})
list(REMOVE_ITEM lean_libs -lssl -lcrypto -ldl -lrt -lz -latomic)
list(FILTER lean_libs EXCLUDE REGEX "^-Wl,")
set(FLOTILLA_LEAN_LIBS -Wl,--start-group -Wl,-Bstatic ${lean_libs} -Wl,-Bdynamic -Wl,--end-group CACHE INTERNAL "")
function(flotilla_lean target)
  set_target_properties(${target} PROPERTIES FLOTILLA_STATIC ON)
  target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc -Wl,-z,lazy)
  target_link_libraries(${target} PRIVATE ${FLOTILLA_LEAN_LIBS} ${ARGN})
  flotilla_without_xds(${target})
endfunction()
