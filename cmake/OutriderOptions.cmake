# outrider_options: language level, warnings and sanitizers of every target of ours.
add_library(outrider_options INTERFACE)
target_compile_features(outrider_options INTERFACE cxx_std_20)
target_compile_options(outrider_options INTERFACE -Wall -Wextra)
if(OUTRIDER_WERROR)
  target_compile_options(outrider_options INTERFACE -Werror)
endif()
# libstdc++ 12 calls its own deprecated functions in std::stable_sort, and clang blames the caller; g++ still checks ours.
target_compile_options(outrider_options INTERFACE $<$<CXX_COMPILER_ID:Clang>:-Wno-deprecated-declarations>)

# __FILE__ is relative to the source folder, so that messages and cached objects do not depend on where it lies.
file(RELATIVE_PATH source_from_build ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR})
target_compile_options(outrider_options INTERFACE
  -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/= -fmacro-prefix-map=${source_from_build}=)

if(OUTRIDER_SANITIZE)
  target_compile_options(outrider_options INTERFACE
    -fsanitize=${OUTRIDER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(outrider_options INTERFACE -fsanitize=${OUTRIDER_SANITIZE})
endif()

find_package(Threads REQUIRED)
target_link_libraries(outrider_options INTERFACE Threads::Threads)

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
