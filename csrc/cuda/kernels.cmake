# The CUDA kernels, as an interface library lowbit_cuda that whatever links the core links too; empty without them.
#
#   LOWBIT_CUDA=AUTO      built where nvcc is found
#   LOWBIT_CUDA=ON, OFF   insisted on, left out
#   LOWBIT_CUDA=EMULATED  the same source compiled for the CPU against tests/cuda_emulator: launches run in the calling
#                         thread and "device memory" is memory. For tests.
#
# csrc/cuda/smXY holds what needs at least compute capability X.Y; csrc/cuda/kernels.inc lists its kernel rows. A file
# is compiled by nvcc to one object with the code of every architecture in LOWBIT_CUDA_ARCHS that its folder is for, and
# with the PTX of the lowest, from which the driver makes code for chips that are newer than all of them.

if(NOT LOWBIT_CUDA MATCHES "^(AUTO|ON|OFF|EMULATED)$")
  message(FATAL_ERROR "LOWBIT_CUDA is '${LOWBIT_CUDA}': AUTO, ON, OFF or EMULATED")
endif()
add_library(lowbit_cuda INTERFACE)
set(lowbit_cuda_folder ${PROJECT_SOURCE_DIR}/csrc/cuda)

# The architectures of LOWBIT_CUDA_ARCHS that the kernels of `folder` are for. Folders of "a" architectures (sm90,
# sm100, sm120: instructions that no other chip has) take their own alone.
function(lowbit_cuda_archs_of folder out)
  string(REGEX REPLACE "^sm" "" needed "${folder}") # "" for files beside the folders
  set(archs)
  foreach(arch IN LISTS LOWBIT_CUDA_ARCHS)
    if(NOT arch MATCHES "^([0-9]+)[af]?$" OR CMAKE_MATCH_1 LESS 80)
      message(FATAL_ERROR "LOWBIT_CUDA_ARCHS has '${arch}': 80 or more, as in 80;89;90a;100a;120a")
    endif()
    set(number ${CMAKE_MATCH_1})
    if(NOT needed OR (needed LESS 90 AND NOT number LESS needed) OR arch MATCHES "^${needed}[af]$")
      list(APPEND archs ${arch})
    endif()
  endforeach()
  set(${out} ${archs} PARENT_SCOPE)
endfunction()

# The rows of kernels.inc whose folder is built, for csrc/dispatch/cuda.cpp.
function(lowbit_cuda_write_list archs_text)
  set(rows ${lowbit_cuda_folder}/kernels.inc)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${rows})
  file(STRINGS ${rows} lines REGEX "^LOWBIT_CUDA_KERNELS\\(")
  set(text)
  foreach(line IN LISTS lines)
    string(REGEX MATCH "\\((sm[0-9]+)," folder "${line}")
    lowbit_cuda_archs_of(${CMAKE_MATCH_1} archs)
    if(archs)
      string(APPEND text "${line}\n")
    endif()
  endforeach()
  file(CONFIGURE OUTPUT generated/cuda_kernels_built.inc CONTENT "${text}" @ONLY)
  target_include_directories(lowbit_core PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/generated)
  target_compile_definitions(lowbit_core PRIVATE LOWBIT_CUDA_ARCHS_BUILT="${archs_text}")
endfunction()

if(LOWBIT_CUDA STREQUAL "OFF")
  return()
endif()

file(GLOB_RECURSE lowbit_cuda_sources CONFIGURE_DEPENDS ${lowbit_cuda_folder}/*.cu)
list(JOIN LOWBIT_CUDA_ARCHS " " archs_text)

if(LOWBIT_CUDA STREQUAL "EMULATED")
  include(tests/cuda_emulator/emulated.cmake)
  target_sources(lowbit_cuda INTERFACE $<TARGET_OBJECTS:cuda_emulator> $<TARGET_OBJECTS:emulated_kernels>)
  lowbit_cuda_write_list("${archs_text}")
  target_compile_definitions(lowbit_core PRIVATE LOWBIT_CUDA_EMULATED)
  message(STATUS "lowbit: CUDA kernels emulated, for tests")
  return()
endif()

# ---- nvcc: on PATH, in CUDA_HOME, or the PyPI package nvidia-cuda-nvcc ----

find_program(LOWBIT_NVCC nvcc HINTS ENV CUDA_HOME ENV LOWBIT_NVCC_ROOT PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT LOWBIT_NVCC)
  if(LOWBIT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LOWBIT_CUDA=ON, but there is no nvcc on PATH or in CUDA_HOME")
  endif()
  message(STATUS "lowbit: no nvcc, so no CUDA kernels")
  return()
endif()
# What is found may be a script that calls nvcc: nvcc itself knows where it lies.
execute_process(COMMAND ${LOWBIT_NVCC} --dryrun -x cu -c /dev/null OUTPUT_VARIABLE dry_run ERROR_VARIABLE dry_run)
string(REGEX MATCH "TOP=([^\r\n]+)" top "${dry_run}")
get_filename_component(nvcc_root "${CMAKE_MATCH_1}" ABSOLUTE)
find_library(LOWBIT_CUDART cudart_static HINTS ${nvcc_root} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib
                                                                           targets/sbsa-linux/lib NO_DEFAULT_PATH)
execute_process(COMMAND ${LOWBIT_NVCC} --version OUTPUT_VARIABLE nvcc_version ERROR_VARIABLE nvcc_version
                RESULT_VARIABLE nvcc_failed)
string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" nvcc_version "${nvcc_version}")
set(nvcc_version ${CMAKE_MATCH_1})
set(why_not)
if(nvcc_failed OR NOT nvcc_version)
  set(why_not "it does not run")
elseif(nvcc_version VERSION_LESS 12.8)
  set(why_not "it is version ${nvcc_version} and 12.8 is needed")
elseif(NOT LOWBIT_CUDART)
  set(why_not "there is no libcudart_static.a beside it")
endif()
if(why_not)
  if(LOWBIT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LOWBIT_CUDA=ON, but ${LOWBIT_NVCC} cannot be used: ${why_not}")
  endif()
  message(WARNING "lowbit: no CUDA kernels: ${LOWBIT_NVCC} cannot be used: ${why_not}")
  return()
endif()

# ---- one object for each file ----

# A compiler process takes at most 4 GB (tests/python/test_cuda_static.py): no more of them than memory holds.
cmake_host_system_information(RESULT memory QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR nvcc_jobs "${memory} / 4096")
if(nvcc_jobs LESS 1)
  set(nvcc_jobs 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS lowbit_nvcc=${nvcc_jobs})

set(nvcc_flags
    -std=c++20
    -O3
    --expt-relaxed-constexpr
    -fmad=false # only fused multiply-adds that are written fuse: the emulator and the CPU get the same bits
    -ccbin=${CMAKE_CXX_COMPILER}
    -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off
    -Xptxas=-warn-spills,-warn-lmem-usage
    -I${PROJECT_SOURCE_DIR}/csrc
    -I${PROJECT_SOURCE_DIR}/include)
if(LOWBIT_WERROR)
  list(APPEND nvcc_flags -Werror=all-warnings)
endif()

set(objects)
foreach(source IN LISTS lowbit_cuda_sources)
  file(RELATIVE_PATH name ${lowbit_cuda_folder} ${source})
  get_filename_component(folder ${name} DIRECTORY)
  lowbit_cuda_archs_of("${folder}" archs)
  if(NOT archs)
    continue()
  endif()
  if(NOT folder)
    list(GET archs 0 archs) # host code alone
  endif()
  set(gencode)
  foreach(arch IN LISTS archs)
    list(APPEND gencode -gencode=arch=compute_${arch},code=sm_${arch})
  endforeach()
  list(GET archs 0 lowest)
  if(lowest MATCHES "^[0-9]+$") # PTX of an "a" architecture runs nowhere else
    list(APPEND gencode -gencode=arch=compute_${lowest},code=compute_${lowest})
  endif()
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
  get_filename_component(directory ${object} DIRECTORY)
  file(MAKE_DIRECTORY ${directory})
  add_custom_command(
    OUTPUT ${object}
    COMMAND sh ${lowbit_cuda_folder}/nvcc.sh ${object}.log ${LOWBIT_NVCC} ${nvcc_flags} ${gencode} -MD -MF ${object}.d
            -c ${source} -o ${object}
    DEPENDS ${source} ${lowbit_cuda_folder}/nvcc.sh
    DEPFILE ${object}.d
    COMMENT "Building CUDA object ${name}.o"
    JOB_POOL lowbit_nvcc
    VERBATIM)
  list(APPEND objects ${object})
endforeach()
if(NOT objects)
  message(FATAL_ERROR "LOWBIT_CUDA_ARCHS is '${LOWBIT_CUDA_ARCHS}': no kernels are for it")
endif()
set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
add_custom_target(lowbit_cuda_objects DEPENDS ${objects})
target_sources(lowbit_cuda INTERFACE ${objects})
find_package(Threads REQUIRED)
target_link_libraries(lowbit_cuda INTERFACE ${LOWBIT_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
add_dependencies(lowbit_cuda lowbit_cuda_objects)

lowbit_cuda_write_list("${archs_text}")
message(STATUS "lowbit: CUDA ${archs_text}, by nvcc ${nvcc_version} (${LOWBIT_NVCC}), at most ${nvcc_jobs} at a time")
