#pragma once
// How many pages of keys and values a device holds.

#include <cstdint>

#include "base/result.h"
#include "spec/config.h"

namespace outrider::serve_gpu {

struct KvBudget {
  int64_t pages = 0;              // wanted; 0: as many as fit
  int64_t free_bytes = 0;         // of the device, beside the weights
  int64_t percent = 90;           // of them, that pages may take where as many as fit are wanted
  int64_t texts_max = 64;         // more than so many texts of the whole context are never there at once
  int64_t beside_bytes = 0;       // that something else takes, the router
  int64_t beside_page_bytes = 0;  // likewise for each page
};

// Bytes of one page in all layers, numbers of `number_bytes`.
int64_t KvPageBytes(const spec::Config& config, int64_t number_bytes);
// What a pass needs beside weights and pages.
int64_t PassBytes(const spec::Config& config, int64_t number_bytes);

// The pages to take. Codes: E_OPTION a share that is none; E_MEMORY no page fits, or fewer than are wanted.
base::Result<int64_t> KvPages(const spec::Config& config, int64_t number_bytes, const KvBudget& budget);

}  // namespace outrider::serve_gpu
