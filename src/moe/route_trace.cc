#include "moe/route_trace.h"

#include <span>

#include "files/atomic_file.h"
#include "files/safetensors.h"

namespace outrider::moe {

base::Result<void> SaveRouteTrace(const std::string& path, const std::vector<DomainLoss>& losses,
                                  const RouteTraceInfo& info) {
  std::vector<files::TensorEntry> entries;
  for (const DomainLoss& domain : losses) {
    if (domain.traced_tokens == 0) continue;
    std::vector<int64_t> shape;
    if (!domain.layers.empty()) shape.push_back(static_cast<int64_t>(domain.trace.size()));
    shape.push_back(domain.traced_tokens);
    const int64_t top = static_cast<int64_t>(domain.trace[0].size()) / domain.traced_tokens;
    if (top > 1) shape.push_back(top);
    entries.push_back({domain.domain, files::Dtype::kU8, shape});
  }
  const std::string header = files::WriteHeader(entries, {{"format", "1"},
                                                          {"split", info.split},
                                                          {"experts", std::to_string(info.experts)},
                                                          {"sequence", std::to_string(info.sequence)}});
  const uint64_t length = header.size();
  auto file = files::AtomicFile::Create(path);
  if (!file) return tl::unexpected(file.error());
  if (auto done = file->Write(std::as_bytes(std::span(&length, 1))); !done) return done;
  if (auto done = file->Write(header); !done) return done;
  for (const DomainLoss& domain : losses) {
    for (const std::vector<uint8_t>& plane : domain.trace) {
      if (auto done = file->Write(std::as_bytes(std::span(plane))); !done) return done;
    }
  }
  return file->Commit();
}

}  // namespace outrider::moe
