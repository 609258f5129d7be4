# C++ tests. One executable per folder, named after it; a new .cc file needs no change here.
#   tests/unit/<room>   unit_<room>        tests/property     property (RapidCheck)
#   tests/golden        golden             tests/concurrency  concurrency
#   tests/differential  differential       tests/fuzz         see outrider_fuzz_targets
if(OUTRIDER_TESTS STREQUAL "fuzz")
  # libFuzzer brings its own main function.
elseif(OUTRIDER_DEPS_DIR)
  add_subdirectory(${OUTRIDER_DEPS_DIR}/googletest ${PROJECT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL SYSTEM)
else()
  find_package(GTest REQUIRED)
endif()

set(outrider_torch_free_rooms base sampling trace plan files kernels spec sched serve)
set(outrider_torch_rooms seam coexec model moe serve_gpu)

# outrider_test(<name> <folder> [TORCH] [LIBRARIES <target>...]); label: torch or torch-free.
function(outrider_test name folder)
  cmake_parse_arguments(PARSE_ARGV 2 arg "TORCH" "" "LIBRARIES")
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${folder}/*.cc)
  if(NOT sources)
    return()
  endif()
  add_executable(${name} ${sources})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE
    OUTRIDER_TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/${folder}")
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} GTest::gmock GTest::gtest_main outrider_options)
  set(label torch-free)
  if(arg_TORCH)
    set(label torch)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(${name} PRIVATE outrider outrider_headers outrider_torch_api outrider_torch_libraries)
  else()
    target_link_libraries(${name} PRIVATE outrider_core)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 300
    ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/tsan.supp;OMP_NUM_THREADS=1")
endfunction()

# Torch-free units of rooms that see torch, for the fuzz program of that name: they are built without torch.
set(outrider_fuzz_units_options moe/options.cc)

# tests/fuzz/<name>_fuzz.cc defines LLVMFuzzerTestOneInput; its seeds lie in tests/fuzz/corpus/<name>.
# With clang it becomes the libFuzzer program fuzz_<name>; ctest runs it over the seeds and a fixed number of inputs.
function(outrider_fuzz_targets)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang" OR OUTRIDER_SANITIZE MATCHES "thread")
    return()
  endif()
  file(GLOB units CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/*_fuzz.cc)
  foreach(unit IN LISTS units)
    cmake_path(GET unit STEM stem)
    string(REGEX REPLACE "_fuzz$" "" name ${stem})
    set(more ${outrider_fuzz_units_${name}})
    list(TRANSFORM more PREPEND ${PROJECT_SOURCE_DIR}/src/)
    add_executable(fuzz_${name} ${unit} ${more})
    target_include_directories(fuzz_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    target_link_libraries(fuzz_${name} PRIVATE outrider_core)
    target_compile_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME fuzz_${name} COMMAND ${CMAKE_COMMAND}
      -DFUZZER=$<TARGET_FILE:fuzz_${name}> -DSEEDS=${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name}
      -DFOUND=${PROJECT_BINARY_DIR}/fuzz/${name} -P ${PROJECT_SOURCE_DIR}/cmake/run_fuzzer.cmake)
    set_tests_properties(fuzz_${name} PROPERTIES LABELS torch-free TIMEOUT 300)
  endforeach()
endfunction()

if(OUTRIDER_TESTS MATCHES "^(torch-free|all)$")
  find_package(rapidcheck REQUIRED)
  foreach(room IN LISTS outrider_torch_free_rooms)
    outrider_test(unit_${room} unit/${room})
  endforeach()
  outrider_test(property property LIBRARIES rapidcheck_gtest)
  outrider_test(golden golden)
  outrider_test(concurrency concurrency)
endif()
if(OUTRIDER_TESTS MATCHES "^(fuzz|torch-free|all)$")
  outrider_fuzz_targets()
endif()
if(OUTRIDER_TORCH AND OUTRIDER_TESTS MATCHES "^(torch|all)$")
  foreach(room IN LISTS outrider_torch_rooms)
    outrider_test(unit_${room} unit/${room} TORCH)
  endforeach()
  outrider_test(differential differential TORCH)
  outrider_cuda_on_cpu()
endif()
