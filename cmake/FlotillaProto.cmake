# flotilla_proto(NAME [FILES...] [GRPC FILES...]): C++ for .proto files under proto/: the messages of FILES, the services of GRPC.
function(flotilla_proto name)
  cmake_parse_arguments(ARG "" "" "FILES;GRPC" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  set(sources)
  foreach(file ${ARG_FILES})
    string(REGEX REPLACE "\\.proto$" "" stem ${file})
    add_custom_command(
      OUTPUT ${out}/${stem}.pb.cc ${out}/${stem}.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR}/proto --cpp_out=${out} ${file}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file})
    list(APPEND sources ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
  endforeach()
  foreach(file ${ARG_GRPC})
    string(REGEX REPLACE "\\.proto$" "" stem ${file})
    add_custom_command(
      OUTPUT ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR}/proto --grpc_out=${out}
              --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${file}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file})
    list(APPEND sources ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
  endforeach()
  add_library(${name} STATIC ${sources})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_compile_options(${name} PRIVATE -w)
  target_link_libraries(${name} PUBLIC dep_protobuf)
  if(ARG_GRPC)
    target_link_libraries(${name} PUBLIC dep_grpc)
  endif()
endfunction()
