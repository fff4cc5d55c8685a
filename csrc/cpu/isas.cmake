# Adds the kernels of every CPU level. The levels are the rows of csrc/dispatch/cpu_isas.inc, read by the preprocessor
# so that the target processor chooses them. Each names a folder here:
#   flags.cmake     LOWBIT_ISA_FLAGS for all its files, LOWBIT_ISA_FLAGS_<stem> for <stem>.cpp on top
#   *.cpp           compiled with those flags, and without exceptions: kernels throw none, and their tables would be
#                   symbols shared with objects that have other flags

function(lowbit_read_cpu_isas out)
  set(rows ${PROJECT_SOURCE_DIR}/csrc/dispatch/cpu_isas.inc)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${rows})
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -E -P -x c++ ${rows} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "LOWBIT_CPU_ISA\\([a-z0-9_]+" names "${text}")
  list(TRANSFORM names REPLACE "LOWBIT_CPU_ISA\\(" "")
  if(NOT names)
    message(FATAL_ERROR "${rows} names no CPU level for ${CMAKE_SYSTEM_PROCESSOR}")
  endif()
  set(${out} ${names} PARENT_SCOPE)
endfunction()

function(lowbit_add_cpu_kernels target)
  lowbit_read_cpu_isas(isas)
  foreach(isa IN LISTS isas)
    set(folder ${PROJECT_SOURCE_DIR}/csrc/cpu/${isa})
    set(LOWBIT_ISA_FLAGS)
    include(${folder}/flags.cmake)
    file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp)
    if(NOT sources)
      message(FATAL_ERROR "CPU level ${isa}: no sources in ${folder}")
    endif()
    foreach(source IN LISTS sources)
      get_filename_component(stem ${source} NAME_WE)
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
                                  "-fno-exceptions;${LOWBIT_ISA_FLAGS};${LOWBIT_ISA_FLAGS_${stem}}")
    endforeach()
    target_sources(${target} PRIVATE ${sources})
  endforeach()
  list(JOIN isas " " text)
  message(STATUS "lowbit: CPU levels ${text}")
endfunction()
