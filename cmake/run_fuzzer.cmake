# Runs one libFuzzer program over its seeds and RUNS further inputs with a fixed seed; new inputs go to FOUND, never
# into the tree. Input: FUZZER, SEEDS, FOUND; optional RUNS.
if(NOT RUNS)
  set(RUNS 20000)
endif()
file(MAKE_DIRECTORY ${FOUND})
if(NOT IS_DIRECTORY ${SEEDS})
  message(FATAL_ERROR "no seeds in ${SEEDS}")
endif()
execute_process(
  COMMAND ${FUZZER} -seed=1 -runs=${RUNS} -artifact_prefix=${FOUND}/ -print_final_stats=1 ${FOUND} ${SEEDS}
  COMMAND_ERROR_IS_FATAL ANY)
