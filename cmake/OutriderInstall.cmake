# Installs liboutrider.so, the public headers and what find_package(outrider) needs. Two shapes:
#   cmake --install     lib/, include/, lib/cmake/outrider
#   a wheel (SKBUILD)   everything inside the Python package folder, next to the extension module
if(NOT OUTRIDER_TORCH)
  return()
endif()
include(CMakePackageConfigHelpers)

if(SKBUILD)
  set(outrider_lib_dir outrider)
  set(outrider_include_dir outrider/include)
  set(outrider_cmake_dir outrider/cmake)
else()
  set(outrider_lib_dir ${CMAKE_INSTALL_LIBDIR})
  set(outrider_include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set(outrider_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/outrider)
endif()

# A module built for one torch minor does not load with another; the package compares before it loads.
set(outrider_built_for ${PROJECT_BINARY_DIR}/_built_for.py)
if(OUTRIDER_IN_TREE_PYTHON)
  set(outrider_built_for ${PROJECT_SOURCE_DIR}/python/outrider/_built_for.py)
endif()
file(CONFIGURE OUTPUT ${outrider_built_for} CONTENT
"\"\"\"Written by the build: the torch version that outrider's extension module was compiled against.\"\"\"

TORCH_VERSION = \"@OUTRIDER_TORCH_VERSION@\"
" @ONLY)

install(TARGETS outrider EXPORT outriderTargets LIBRARY DESTINATION ${outrider_lib_dir}
  INCLUDES DESTINATION ${outrider_include_dir})
if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/include/outrider)
  install(DIRECTORY include/outrider DESTINATION ${outrider_include_dir} FILES_MATCHING PATTERN "*.h")
endif()
if(SKBUILD AND TARGET outrider_bindings)
  install(TARGETS outrider_bindings LIBRARY DESTINATION ${outrider_lib_dir})
  install(FILES ${outrider_built_for} DESTINATION ${outrider_lib_dir})
endif()

install(EXPORT outriderTargets NAMESPACE outrider:: DESTINATION ${outrider_cmake_dir})
configure_package_config_file(cmake/outriderConfig.cmake.in ${PROJECT_BINARY_DIR}/outriderConfig.cmake
  INSTALL_DESTINATION ${outrider_cmake_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/outriderConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/outriderConfig.cmake ${PROJECT_BINARY_DIR}/outriderConfigVersion.cmake
  cmake/OutriderTorch.cmake DESTINATION ${outrider_cmake_dir})
