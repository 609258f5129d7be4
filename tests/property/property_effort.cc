// How many cases each property is tried on; RC_PARAMS in the environment overrides it.

#include <cstdlib>

namespace {

// Read by RapidCheck when the first property runs, so it has to be there before main().
[[maybe_unused]] const int kEffort = setenv("RC_PARAMS", "max_success=400", /*overwrite=*/0);

}  // namespace
