# benchmarks/micro/<name>.cc -> bench_<name> (Google Benchmark, torch-free rooms).
find_package(benchmark REQUIRED)
file(GLOB outrider_benchmarks CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/benchmarks/micro/*.cc)
foreach(unit IN LISTS outrider_benchmarks)
  cmake_path(GET unit STEM name)
  add_executable(bench_${name} ${unit})
  target_link_libraries(bench_${name} PRIVATE outrider_core benchmark::benchmark_main)
endforeach()
