# Room kernels: the units of x86/ are compiled each for one instruction set and chosen at run time (x86/machine.cc), so
# the library still starts on every x86-64. They include no header whose inline functions other units share.
outrider_layer(NAME kernels)

set(kernels_backend no_x86)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(kernels_backend x86)
endif()
file(GLOB kernels_units CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/kernels/${kernels_backend}/*.cc)
target_sources(outrider_kernels PRIVATE ${kernels_units})

# A product and a sum must not become one operation in some loops and stay two in others.
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/kernels/engine_portable.cc PROPERTIES
  COMPILE_OPTIONS -ffp-contract=off)

set(kernels_avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma)
set(kernels_avx512_vnni ${kernels_avx512} -mavx512vnni)
set(kernels_avx512_bf16 ${kernels_avx512} -mavx512bf16)
set(kernels_amx ${kernels_avx512_bf16} -mamx-tile -mamx-bf16)
set(kernels_avx2 -mavx2 -mfma -mf16c)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 takes the undefined operands inside its own AVX-512 header for mistakes.
  list(APPEND kernels_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  list(APPEND kernels_avx512_vnni -Wno-uninitialized -Wno-maybe-uninitialized)
  list(APPEND kernels_avx512_bf16 -Wno-uninitialized -Wno-maybe-uninitialized)
  list(APPEND kernels_amx -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
foreach(set IN ITEMS avx2 avx512 avx512_vnni avx512_bf16 amx)
  set_source_files_properties(${PROJECT_SOURCE_DIR}/src/kernels/x86/engine_${set}.cc PROPERTIES
    COMPILE_OPTIONS "${kernels_${set}}")
endforeach()
