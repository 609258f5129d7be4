#pragma once
// Which experts the tokens of an evaluation used, as a small file for analyses: docs/formats/routes.md.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "moe/workbench.h"

namespace outrider::moe {

struct RouteTraceInfo {
  std::string split;
  int64_t experts = 0;
  int64_t sequence = 0;  // tokens of one text
};

// Writes the traces of `losses`, one uint8 tensor per domain: [T], or [L, T], or [L, T, top]. Complete or absent.
// Codes: E_WRITE.
base::Result<void> SaveRouteTrace(const std::string& path, const std::vector<DomainLoss>& losses,
                                  const RouteTraceInfo& info);

}  // namespace outrider::moe
