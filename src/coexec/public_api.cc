// include/outrider/coexec.h.

#include "outrider/coexec.h"

#include <exception>

#include "coexec/session.h"

namespace outrider {

using coexec::Session;

StepScope::StepScope(const char* name) : active_(Session::Get().BeginStep(name)), exceptions_(std::uncaught_exceptions()) {}

StepScope::~StepScope() {
  if (!active_) return;
  if (std::uncaught_exceptions() > exceptions_) {
    Session::Get().AbortStep();
  } else {
    Session::Get().EndStep();
  }
}

std::vector<Row> Rows() {
  const auto& rows = Session::Get().Rows().Rows();
  return {rows.begin(), rows.end()};
}

std::optional<Row> LastRow() {
  const auto& rows = Session::Get().Rows().Rows();
  return rows.empty() ? std::nullopt : std::optional<Row>(rows.back());
}

void Flush() { Session::Get().Flush(seam::FlushReason::kCalled); }
void Leave() { Session::Get().Leave(); }
void SetOption(const std::string& name, int64_t value) { Session::Get().SetOption(name, value); }

}  // namespace outrider
