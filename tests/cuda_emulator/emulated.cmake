# cuda_emulator and emulated_kernels: the emulator, and every csrc/cuda/**/*.cu compiled by the host compiler against
# cuda/common of this folder, which has the names of csrc/cuda/common. Needs no nvcc. See emulator/emulator.h.

set(emulator_folder ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
add_library(cuda_emulator OBJECT)
file(GLOB emulator_sources CONFIGURE_DEPENDS ${emulator_folder}/emulator/*.cpp)
target_sources(cuda_emulator PRIVATE ${emulator_sources})
target_include_directories(cuda_emulator BEFORE PUBLIC ${emulator_folder})
target_include_directories(cuda_emulator PUBLIC ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/include
                                                ${PROJECT_SOURCE_DIR}/tests/cpp)
target_compile_definitions(cuda_emulator PUBLIC LOWBIT_EMULATOR=1 LOWBIT_DEVICE_ARCH=900)
target_compile_options(cuda_emulator PUBLIC -O2 -g)
target_link_libraries(cuda_emulator PUBLIC lowbit_flags)
set_source_files_properties(${emulator_folder}/emulator/arithmetic.cpp PROPERTIES COMPILE_OPTIONS -O3)

# Of the folders that are for LOWBIT_CUDA_ARCHS, as nvcc would build them.
file(GLOB_RECURSE kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu)
foreach(source IN LISTS kernel_sources)
  file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR}/csrc/cuda ${source})
  get_filename_component(folder "${name}" DIRECTORY)
  lowbit_cuda_archs_of("${folder}" archs)
  if(NOT archs)
    list(REMOVE_ITEM kernel_sources ${source})
  endif()
endforeach()
add_library(emulated_kernels OBJECT ${kernel_sources})
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
target_link_libraries(emulated_kernels PUBLIC cuda_emulator)
