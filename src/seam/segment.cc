#include "seam/segment.h"
#include "seam/plan_graphs.h"

#include <algorithm>

#include "base/clock.h"
#include "seam/outer_part.h"
#include "seam/storage_copy.h"

namespace outrider::seam {
namespace {

using Code = Arg::Code;

constexpr size_t kCopiedInputMax = 1 << 20;  // bytes; an operator that reads more of an input of its step is launched singly
constexpr int kOpsMin = 4;        // shorter runs of ops are launched one by one
constexpr int kMissesMax = 3;     // launches that do not fit before the range is captured anew
constexpr int kRecapturesMax = 3;
constexpr int kFailuresMax = 4;

bool NeedsHost(const Arg& arg) {
  if (arg.code == Code::kLate || (arg.code == Code::kConstant && arg.constant.isGenerator())) return true;
  return std::any_of(arg.list.begin(), arg.list.end(), NeedsHost);
}

// An input of the step that some op of the plan writes to: a copy would take the write away from the program.
bool IsWrittenInput(const OuterPlan& plan, int slot) {
  return plan.slots[slot].external && plan.slots[slot].persistent < 0 && plan.written[slot] != 0;
}

}  // namespace

Segment::Segment(const OuterPart& part) {
  const size_t slots = part.plan->slots.size();
  loose_.assign(slots, 0);
  wanted_.assign(slots, 0);
}

void Segment::Observe(const OuterPart& part) {
  for (size_t slot = 0; slot < wanted_.size(); ++slot) wanted_[slot] |= part.Kept()[slot];
  std::vector<std::pair<int, const void*>> seen;
  for (size_t slot = 0; slot < part.plan->slots.size(); ++slot) {
    const auto& storage = part.table->slots[slot];
    if (storage && IsWrittenInput(*part.plan, static_cast<int>(slot))) seen.emplace_back(slot, storage.data());
  }
  // Another place of the same memory each time, such as one expert's weights.
  for (const auto& [slot, operand] : part.inputs) loose_[slot] |= operand.count > kCopiedInputMax;
  for (const auto& [slot, address] : observed_) {
    const auto now = std::find_if(seen.begin(), seen.end(), [slot = slot](const auto& entry) { return entry.first == slot; });
    if (now == seen.end() || now->second != address) loose_[slot] = 1;
  }
  observed_ = std::move(seen);
}

bool Segment::CanCapture(const OuterPart& part, int index) const {
  const DeviceOp& op = part.plan->ops[index];
  if (std::find(barred_.begin(), barred_.end(), index) != barred_.end()) return false;
  if (op.host_draw || std::any_of(op.args.begin(), op.args.end(), NeedsHost)) return false;
  bool fits = true;
  VisitSlots(*part.plan, op, [&](int slot) { fits &= part.plan->slots[slot].device.is_cuda() && loose_[slot] == 0; });
  return fits;
}

void Segment::CutIntoPieces(const OuterPart& part) {
  pieces_.clear();
  for (int i = part.first_op; i < part.end_op; ++i) {
    const bool capture = CanCapture(part, i);
    if (pieces_.empty() || pieces_.back().captured != capture) {
      Piece& piece = pieces_.emplace_back();
      piece.first = i;
      piece.captured = capture;
    }
    pieces_.back().end = i + 1;
  }
  for (Piece& piece : pieces_) piece.captured &= piece.end - piece.first >= kOpsMin;
}

void Segment::FindOperands(const OuterPart& part) {
  const OuterPlan& plan = *part.plan;
  enum class Source : char { kUnknown, kFixed, kStatic, kGraph };
  std::vector<Source> source(plan.slots.size(), Source::kUnknown);
  statics_.clear();
  fixed_.clear();
  produced_.assign(plan.slots.size(), 0);
  for (const auto& [slot, operand] : part.inputs) {
    if (!IsWrittenInput(plan, slot)) source[slot] = Source::kStatic;
  }
  for (Piece& piece : pieces_) {
    piece.statics.clear();
    for (int i = piece.first; i < piece.end; ++i) {
      VisitSlots(plan, plan.ops[i], [&](int slot) {
        const bool made_here = !plan.slots[slot].external && plan.first_use[slot] == i;
        if (made_here) source[slot] = piece.captured ? Source::kGraph : Source::kStatic;
        if (made_here && piece.captured) produced_[slot] = 1;
        if (source[slot] == Source::kUnknown && piece.captured) {
          source[slot] = Source::kFixed;
          fixed_.emplace_back(slot, nullptr);
        }
        if (source[slot] == Source::kStatic && piece.captured) AddStatic(slot, piece.statics);
      });
    }
  }
  leaving_.clear();
  for (size_t slot = 0; slot < source.size(); ++slot) {
    if (source[slot] == Source::kStatic && plan.last_use[slot] >= part.end_op) AddStatic(static_cast<int>(slot), leaving_);
  }
}

void Segment::AddStatic(int slot, std::vector<int>& needed_by) {
  const auto known = [slot](const Static& entry) { return entry.slot == slot; };
  if (std::any_of(statics_.begin(), statics_.end(), known)) return;
  needed_by.push_back(static_cast<int>(statics_.size()));
  statics_.push_back({slot, {}});
}

void Segment::FillStatics(OuterPart& part, const std::vector<int>& indices) {
  for (int index : indices) {
    Static& target = statics_[index];
    const c10::Storage source = part.table->slots[target.slot];
    TORCH_CHECK(source, "outrider: an input of a device graph has no value");
    if (!target.buffer) {
      target.buffer = CopyStorage(source);
    } else {
      OverwriteStorage(target.buffer, source);
    }
    part.SetSlot(target.slot, target.buffer);
  }
}

// Nothing of a failed capture remains: neither storages nor the drops it made.
void Segment::CapturePiece(OuterPart& part, GraphMemory& memory, Piece& piece) {
  const auto slots = part.table->slots;
  const auto variables = part.table->variables;
  try {
    piece.graph = memory.Capture([&] { part.RunOps(piece.first, piece.end); });
  } catch (...) {
    part.table->slots = slots;
    part.table->variables = variables;
    throw;
  }
  for (size_t slot = 0; slot < produced_.size(); ++slot) {
    const int made = part.plan->first_use[slot];
    if (produced_[slot] == 0 || made < piece.first || made >= piece.end || !part.table->slots[slot]) continue;
    piece.results.emplace_back(slot, AliasStorage(part.table->slots[slot]));
    just_captured_.push_back(static_cast<int>(slot));
  }
}

// What is still there at the end of the range is owned by it from here on; the rest has been given back to the memory.
void Segment::KeepResults(OuterPart& part) {
  held_.assign(produced_.size(), 0);
  for (Piece& piece : pieces_) {
    for (auto& [slot, storage] : piece.results) {
      if (!part.table->slots[slot]) continue;
      storage = part.table->slots[slot];
      held_[slot] = 1;
    }
  }
}

bool Segment::Capture(OuterPart& part, GraphMemory& memory) {
  const int64_t start = base::NowNs();
  CutIntoPieces(part);
  if (std::none_of(pieces_.begin(), pieces_.end(), [](const Piece& piece) { return piece.captured; })) {
    Refuse(part, "no long enough run of operators that need nothing from the host");
    return false;
  }
  FindOperands(part);
  part.Retain(wanted_);
  for (auto& [slot, address] : fixed_) address = part.table->slots[slot] ? part.table->slots[slot].data() : nullptr;
  for (Piece& piece : pieces_) {
    try {
      if (piece.captured) {
        FillStatics(part, piece.statics);
        CapturePiece(part, memory, piece);
        piece.graph->Replay();
        continue;
      }
    } catch (const std::exception& error) {
      GiveUp(part, error.what());
      part.RunOps(piece.first, part.end_op);
      return true;
    }
    part.RunOps(piece.first, piece.end);
  }
  FillStatics(part, leaving_);
  KeepResults(part);
  state_ = State::kReady;
  part.capture_start_ns = start;
  part.capture_ns = base::NowNs() - start;
  return true;
}

// The op that failed is left out of the next try.
void Segment::GiveUp(OuterPart& part, const std::string& what) {
  const int op = part.CurrentOp();
  const std::string why = part.plan->ops[op].info->name + ": " + what.substr(0, what.find('\n'));
  if (++failures_ < kFailuresMax) {
    barred_.push_back(op);
    if (part.table->outcome != nullptr) part.table->outcome->Refuse("TIER_NOT_CAPTURABLE: " + why);
  } else {
    Refuse(part, why);
  }
}

bool Segment::Fits(const OuterPart& part) const {
  for (const auto& [slot, address] : fixed_) {
    const auto& storage = part.table->slots[slot];
    if (!storage || storage.data() != address) return false;
  }
  for (const auto& [slot, storage] : statics_) {
    if (part.plan->slots[slot].external && part.table->slots[slot].nbytes() != storage.nbytes()) return false;
  }
  for (size_t slot = 0; slot < produced_.size(); ++slot) {
    if (produced_[slot] != 0 && part.Kept()[slot] != 0 && held_[slot] == 0) return false;
  }
  return true;
}

void Segment::Launch(OuterPart& part) {
  for (const Piece& piece : pieces_) {
    if (!piece.captured) {
      part.RunOps(piece.first, piece.end);
      continue;
    }
    FillStatics(part, piece.statics);
    piece.graph->Replay();
    for (const auto& [slot, storage] : piece.results) part.SetSlot(slot, storage);
  }
  FillStatics(part, leaving_);
}

void Segment::Refuse(OuterPart& part, const std::string& why) {
  state_ = State::kRefused;
  pieces_.clear();
  statics_.clear();
  if (part.table->outcome != nullptr) part.table->outcome->Refuse("TIER_NOT_CAPTURABLE: " + why);
}

void Segment::CountOps(OuterPart& part) const {
  if (part.table->outcome == nullptr) return;
  for (const Piece& piece : pieces_) {
    auto& count = piece.captured ? part.table->outcome->graph_ops : part.table->outcome->single_ops;
    count += piece.end - piece.first;
  }
}

void Segment::CaptureAgain() {
  if (state_ != State::kReady) return;
  state_ = State::kCounting;
  pieces_.clear();
}

bool Segment::Run(OuterPart& part, GraphMemory& memory, std::vector<char>& in_buffer) {
  just_captured_.clear();
  if (state_ == State::kRefused) return false;
  if (state_ == State::kCounting) {
    Observe(part);
    if (runs_++ < kRunsBefore || !Capture(part, memory)) return false;
  } else if (!Fits(part)) {
    Observe(part);
    if (++misses_ < kMissesMax) return false;
    misses_ = 0;
    if (++recaptures_ > kRecapturesMax) {
      Refuse(part, "addresses or living values change from step to step");
    } else {
      CaptureAgain();
    }
    return false;
  } else {
    misses_ = 0;
    Launch(part);
  }
  for (int slot : just_captured_) in_buffer[slot] = 1;
  if (state_ != State::kReady) return true;
  CountOps(part);
  for (size_t slot = 0; slot < held_.size(); ++slot) in_buffer[slot] |= held_[slot];
  for (const Static& entry : statics_) in_buffer[entry.slot] = 1;
  return true;
}

namespace {

constexpr size_t kSegmentsMax = 12;  // ranges of one plan that may be captured

}  // namespace

// A record with one owner is ours alone: the program let go of the value.
bool PlanGraphs::GiveBytes(Lent& lent) {
  if (lent.record.use_count() > 1) OwnBytes(*lent.record);
  return true;
}

PlanGraphs::~PlanGraphs() { Clear(); }

void PlanGraphs::Clear() {
  std::erase_if(lent_, GiveBytes);
  segments_.clear();
  memory_.reset();
}

Segment* PlanGraphs::Find(const OuterPart& part) {
  if (part.first_op == part.end_op) return nullptr;
  const auto key = std::make_tuple(part.first_op, part.end_op, part.commit);
  auto it = segments_.find(key);
  if (it == segments_.end()) {
    if (segments_.size() == kSegmentsMax) return nullptr;
    it = segments_.emplace(key, std::make_unique<Segment>(part)).first;
  }
  return it->second.get();
}

void PlanGraphs::Prepare(OuterPart& part) {
  if (step_ != part.table->step) {
    step_ = part.table->step;
    in_buffer_.assign(part.plan->slots.size(), 0);
  }
  Segment* segment = Find(part);
  if (segment == nullptr || !segment->MayLaunch()) return;
  std::erase_if(lent_, [this](Lent& lent) { return lent.step != step_ && GiveBytes(lent); });
}

bool PlanGraphs::Run(OuterPart& part) {
  Segment* segment = Find(part);
  if (segment == nullptr) return false;
  if (memory_ == nullptr) memory_ = NewGraphMemory(device_);
  if (memory_ == nullptr) return false;
  const bool ran = segment->Run(part, *memory_, in_buffer_);
  if (segment->JustCaptured()) {
    for (auto& [key, other] : segments_) {
      if (std::get<0>(key) >= part.end_op) other->CaptureAgain();
    }
  }
  return ran;
}

bool PlanGraphs::Lend(int slot, const RecordPtr& record, const OuterTable& table) {
  if (slot >= static_cast<int>(in_buffer_.size()) || in_buffer_[slot] == 0 || table.step != step_ || !table.slots[slot]) return false;
  LendBytes(*record, table.slots[slot]);
  lent_.push_back({step_, record});
  return true;
}

}  // namespace outrider::seam
