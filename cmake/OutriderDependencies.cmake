# outrider_headers: the header-only third parties (nlohmann-json, tl::expected, xxhash, fmt).
# They come from OUTRIDER_DEPS_DIR/include when that is set, else from the system.
function(outrider_find_header variable header)
  if(OUTRIDER_DEPS_DIR)
    find_path(${variable} ${header} PATHS ${OUTRIDER_DEPS_DIR}/include NO_DEFAULT_PATH)
  else()
    find_path(${variable} ${header})
  endif()
  if(NOT ${variable})
    message(FATAL_ERROR "${header} not found: install the packages of packaging/apt.txt (`make deps`)")
  endif()
  mark_as_advanced(${variable})
endfunction()

outrider_find_header(OUTRIDER_EXPECTED_INCLUDE tl/expected.hpp)
outrider_find_header(OUTRIDER_JSON_INCLUDE nlohmann/json.hpp)
outrider_find_header(OUTRIDER_XXHASH_INCLUDE xxhash.h)
outrider_find_header(OUTRIDER_FMT_INCLUDE fmt/format.h)

add_library(outrider_headers INTERFACE)
target_include_directories(outrider_headers SYSTEM INTERFACE
  ${OUTRIDER_EXPECTED_INCLUDE} ${OUTRIDER_JSON_INCLUDE} ${OUTRIDER_XXHASH_INCLUDE} ${OUTRIDER_FMT_INCLUDE})
target_compile_definitions(outrider_headers INTERFACE FMT_HEADER_ONLY XXH_INLINE_ALL)
