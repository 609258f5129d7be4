# examples/cpp/<name>.cc -> examples/<name> in the build folder. An example sees only what a user sees: the public
# headers, liboutrider.so and torch.
file(GLOB outrider_examples CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/cpp/*.cc)
foreach(unit IN LISTS outrider_examples)
  cmake_path(GET unit STEM name)
  add_executable(example_${name} ${unit})
  set_target_properties(example_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/examples)
  target_link_libraries(example_${name} PRIVATE
    outrider outrider_options outrider_torch_api outrider_torch_libraries)
endforeach()
