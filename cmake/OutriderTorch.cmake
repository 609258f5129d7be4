# Torch as a Python package ships it: headers and libraries are taken from the package folder itself, never through
# torch's own CMake files, which fail beside a CUDA wheel on a machine without a CUDA toolkit.
#   outrider_torch             headers, as system headers
#   outrider_torch_api         headers plus the C++ front end (torch/torch.h): tests and examples only
#   outrider_torch_libraries   torch, torch_cpu, c10 (and the CUDA ones when OUTRIDER_CUDA is on)
# Input: OUTRIDER_TORCH_DIR (package folder), or Python3_EXECUTABLE whose torch is taken.
set(OUTRIDER_TORCH_DIR "" CACHE PATH "Folder of the torch package, for example .../site-packages/torch")

if(NOT OUTRIDER_TORCH_DIR)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE outrider_torch_found OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT outrider_torch_found)
    message(FATAL_ERROR "${Python3_EXECUTABLE} has no torch. Install torch first and, with pip, build with "
      "--no-build-isolation; or set OUTRIDER_TORCH_DIR.")
  endif()
  set(OUTRIDER_TORCH_DIR ${outrider_torch_found} CACHE PATH "" FORCE)
endif()

file(STRINGS ${OUTRIDER_TORCH_DIR}/version.py outrider_torch_facts REGEX "^(__version__|cuda)")
string(REGEX MATCH "__version__ = '([^']*)'" unused "${outrider_torch_facts}")
set(OUTRIDER_TORCH_VERSION "${CMAKE_MATCH_1}")
string(REGEX MATCH "cuda: Optional\\[str\\] = '([^']*)'" unused "${outrider_torch_facts}")
set(OUTRIDER_TORCH_CUDA_VERSION "${CMAKE_MATCH_1}")
if(NOT OUTRIDER_TORCH_VERSION MATCHES "^2\\.(11|13)\\.")
  message(FATAL_ERROR "outrider needs torch 2.11 or 2.13; ${OUTRIDER_TORCH_DIR} is '${OUTRIDER_TORCH_VERSION}'")
endif()
set(OUTRIDER_TORCH_LIB_DIR ${OUTRIDER_TORCH_DIR}/lib)

add_library(outrider_torch INTERFACE)
target_include_directories(outrider_torch SYSTEM INTERFACE ${OUTRIDER_TORCH_DIR}/include)

add_library(outrider_torch_api INTERFACE)
target_include_directories(outrider_torch_api SYSTEM INTERFACE
  ${OUTRIDER_TORCH_DIR}/include/torch/csrc/api/include)
target_link_libraries(outrider_torch_api INTERFACE outrider_torch)

add_library(outrider_torch_libraries INTERFACE)
foreach(name torch torch_cpu c10)
  target_link_libraries(outrider_torch_libraries INTERFACE ${OUTRIDER_TORCH_LIB_DIR}/lib${name}.so)
endforeach()
# What torch's own libraries need beyond themselves (CUDA, cuDNN, ...) is found when they are loaded, not by our linker.
target_link_options(outrider_torch_libraries INTERFACE -Wl,--allow-shlib-undefined)
message(STATUS "torch ${OUTRIDER_TORCH_VERSION} in ${OUTRIDER_TORCH_DIR}")
